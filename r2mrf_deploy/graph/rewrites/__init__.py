"""Exact rewrites of ONNX graphs: the same function with less work.

Unrolled recurrent refinement convolves the same feature map with the same weights at every step, and merges taps of five
resolutions at the finest one. Each file here is one identity of real arithmetic that takes such work away; `pipeline` runs
them to a fixpoint under a cost model. They are written on `onnx_ir` itself: a concatenation of any number of parts, or a
set of nodes that read one tensor, is not a pattern of fixed form that a matcher could be given.
"""

from r2mrf_deploy.graph.rewrites.pipeline import Optimized, optimize

__all__ = ["Optimized", "optimize"]
