"""Constants that a rewrite computes: in float64, then rounded once to the type of those that they replace.

In a type narrower than float32 every constant was rounded before. Its product with another may vanish (the gamma of a batch
norm can be 1e-5, and the smallest float16 is 6e-8), and to round it again doubles the error. So such a graph keeps its
constants; one that is rewritten before its precision is lowered loses nothing.
"""

from __future__ import annotations

import numpy as np


def rounded(dtype: np.dtype, *arrays: np.ndarray) -> list[np.ndarray] | str:
    """The float64 arrays as arrays of `dtype`, or why their values would be lost in it."""
    if dtype not in (np.float32, np.float64):
        return f"new constants would lose precision in {dtype}: optimise the graph in float32, then lower its precision"
    with np.errstate(over="ignore"):  # refused here
        results = [array.astype(dtype) for array in arrays]
    overflows = not all(np.isfinite(result).all() for result in results)
    return f"the new constants would overflow {dtype}" if overflows else results
