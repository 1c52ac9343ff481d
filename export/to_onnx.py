"""Export a checkpoint to ONNX: `python export/to_onnx.py ckpt.pth` is `r2mrf export ckpt.pth`."""

import sys

from r2mrf_deploy.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
