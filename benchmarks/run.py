"""`python benchmarks/run.py model.onnx model.plan` is `r2mrf bench model.onnx model.plan`: it times them side by side."""

import sys

from r2mrf_deploy.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
