"""Whether an artifact computes what PyTorch computes, where it begins to differ, and which nodes explain it."""
