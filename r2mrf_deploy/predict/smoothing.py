"""Maps of a film that do not flicker: a running mean over its frames, which starts anew at every cut.

A cut is found by two frames that do not resemble each other, wherever the camera has moved in between. Thumbnails of 32 x 32
pixels are compared: noise, small movements and a change of focus, which a film for this network is likely to show, hardly
change them. Their contrast is compared, not their brightness, so that flicker and fades are no cuts; and histograms are not
compared at all, because a flicker changes them more than a cut does.

The limits below were measured on thumbnails of 56 photographs, CUHK's and DUT's. Between two of them, `difference` was at
least 0.36 in 199 of 200 pairs. Between two parts of one photograph, as a pan of up to 20 % of the width in one frame shows
them, it was at most 0.12; at half the brightness 0.20; with the left fifth suddenly covered 0.28. As in FFmpeg's filter
`scdet` (libavfilter/vf_scdet.c), a frame must also differ clearly more from that before than that did from its own
predecessor: rapid movement is no row of cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from r2mrf_deploy import images

SIDE = 32
"""Height and width of a thumbnail."""
REACH = 8
"""The farthest movement between two frames that is recognised, in pixels of the thumbnail, along each axis."""
NOISE = 8.0
"""Standard deviation, of 255 levels, below which a thumbnail counts as flat: a dark frame is not compared by its noise."""
CUT = 0.35
"""The least difference of the first frame after a cut from the last frame before it."""
RISE = 0.2
"""By how much that difference exceeds the one before."""


def thumbnail(image: np.ndarray) -> np.ndarray:
    """The luma of an image, uint8 [H, W, 3], in small: float32 [32, 32], 0 to 255."""
    step = max(1, min(image.shape[:2]) // (8 * SIDE))  # 8 x 8 samples for each pixel are enough
    small = images.resize(np.ascontiguousarray(image[::step, ::step]), (SIDE, SIDE))
    return small.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """How little two thumbnails resemble each other: 0 for the same, around 1 for two that have nothing in common.

    It is the mean square of what remains of one minus the other, both without their means, as a share of the variances of
    both; the least over all movements by up to `REACH` pixels, each over the part that both thumbnails show.
    """
    unmoved = _residue(first, second)
    if unmoved < CUT:  # the least can only be less: no cut
        return unmoved
    movements = product(range(-REACH, REACH + 1), repeat=2)
    return min(_residue(first[_part(y), _part(x)], second[_part(-y), _part(-x)]) for y, x in movements)


def _part(movement: int) -> slice:
    """What of a side still lies on the other thumbnail, moved by so many pixels."""
    return slice(max(0, movement), SIDE + min(0, movement))


def _residue(first: np.ndarray, second: np.ndarray) -> float:
    variances = first.var() + second.var() + 2 * NOISE**2
    return float((first - second).var() / variances)


def is_cut(thumbnails: Sequence[np.ndarray]) -> bool:
    """Whether the last of some consecutive thumbnails, three or fewer, is that of the first frame after a cut."""
    if len(thumbnails) < 2:
        return False
    found = difference(thumbnails[-2], thumbnails[-1])
    if found < CUT:
        return False
    before = difference(thumbnails[-3], thumbnails[-2]) if len(thumbnails) > 2 else 0.0
    return found - before >= RISE


def blend(mean: np.ndarray, focus: np.ndarray, seconds: float, smooth: float) -> np.ndarray:
    """The exponential running mean of maps after one more of them.

    Args:
        mean: that of the frames so far, float32 [H, W].
        focus: the map of the next frame, float32 [H, W].
        seconds: from the last frame to this one.
        smooth: the time constant in seconds: after it, 63 % of the mean is of what has come since. 0 keeps no past.

    Returns:
        float32 [H, W]: mean + alpha (focus - mean), where alpha = 1 - exp(-seconds / smooth).
    """
    if smooth <= 0:
        return focus
    alpha = np.float32(-np.expm1(-seconds / smooth))
    return mean + alpha * (focus - mean)
