"""`python engines/build_engine.py model.onnx` is `r2mrf build model.onnx`: it builds an engine from an ONNX file."""

import sys

from r2mrf_deploy.cli import main

if __name__ == "__main__":
    sys.exit(main(["build", *sys.argv[1:]]))
