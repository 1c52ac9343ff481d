"""PyTorch as a runtime: eager on the CPU, and on a GPU."""
