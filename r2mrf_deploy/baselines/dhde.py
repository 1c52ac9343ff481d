"""Hand-crafted features and those of a small network at edges, classified as levels of blur and propagated.

Park, Tai, Cho and Kweon, A unified approach of multi-scale deep and hand-crafted features for defocus estimation, CVPR
(2017). Patches at edges give the averages of their DCT in rings, the distribution of their gradients, their singular values,
and the features of a convolutional network. A fully connected classifier finds one of eleven levels of Gaussian blur; their
probabilities give an expected σ at edges, which the matting Laplacian propagates. There are five departures. All places get
patches of both sizes, instead of small ones at strong edges and large ones at weak ones. The network is much smaller, takes
the grey patch, and its filters see all of it alike. Training blurs what is in focus in photographs, as in the paper, and
adds what is out of focus in them as the strongest level. The sparse map is not filtered before it is propagated. It
lies on a grid of every sixth pixel, and a guided filter leads to the pixels.
"""

from __future__ import annotations

import numpy as np

from r2mrf_deploy.baselines.guided import guided
from r2mrf_deploy.baselines.parameters import learned
from r2mrf_deploy.baselines.propagation import propagate
from r2mrf_deploy.baselines.windows import around, every, luminance, spread

PATCHES = (15, 27)
"""Sides of the two patches in pixels."""
LEVELS = np.linspace(0.5, 2.0, 11)
"""σ of the levels of blur in pixels."""
STRIDE = 6
"""Distance between places in pixels."""
EDGE = 0.02, 0.06
"""The two thresholds of Canny's edges, of gradients of intensities in 0..1; edges are sought after a Gaussian of σ = 1."""
TRUST = 0.1
"""Weight of what is known at edges in the propagation."""
GRADIENTS = np.geomspace(0.5 / 255, 0.5, 12)
"""Bounds between the bins of gradients, of intensities in 0..1."""
CONVOLUTIONS = ((5, 2), (3, 2))
"""Side and stride of the network's two layers of filters, in pixels. Their numbers are those of the learned arrays."""


def focus(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB -> float32 [H, W] in 0..1, 1 = in focus.

    Normalisation: σ of the weakest level is 1, that of the strongest 0; a photograph without edges is 0.

    Raises:
        InputError: the array is not such a photograph.
    """
    from scipy.ndimage import uniform_filter

    grey = luminance(image)
    rows, columns = (every(n, STRIDE) for n in grey.shape)
    at = edges(grey)[np.ix_(rows, columns)]
    if not at.any():
        return np.zeros(grey.shape, np.float32)
    y, x = np.nonzero(at)
    levels = probabilities(*described(grey, rows[y], columns[x]), learned("dhde"))
    sharp = np.zeros(at.shape)
    sharp[at] = (LEVELS[-1] - levels @ LEVELS) / (LEVELS[-1] - LEVELS[0])
    colours = uniform_filter(image / 255, (3, 3, 1), mode="reflect")[np.ix_(rows, columns)]
    everywhere = np.clip(propagate(sharp, TRUST * at, colours), 0, 1)
    return np.clip(guided(spread(everywhere, rows, columns, grey.shape), grey, 8, 1e-3), 0, 1).astype(np.float32)


def edges(grey: np.ndarray) -> np.ndarray:
    """Whether there is an edge within two pixels: bool [H, W] of [H, W] in 0..1."""
    from scipy.ndimage import maximum_filter
    from skimage.feature import canny

    padded = np.pad(grey, 8, mode="symmetric")  # Canny finds nothing at the border
    found = canny(padded, 1.0, *EDGE)[8:-8, 8:-8]
    return np.asarray(maximum_filter(found, 5, mode="reflect"))


def described(grey: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hand-crafted features of the patches around N places, float64 [N, F], and the larger patches, [N, 27, 27]."""
    windows = {side: around(grey, side)[rows, columns] for side in PATCHES}
    return np.concatenate([_handcrafted(patches) for patches in windows.values()], axis=1), windows[PATCHES[-1]]


def _handcrafted(patches: np.ndarray) -> np.ndarray:
    """The DCT in rings, the distribution of gradients and the singular values of patches [N, M, M]: float64 [N, F]."""
    from scipy.fft import dctn

    side = patches.shape[1]
    i, j = np.indices((side, side))
    ring = (i + j).ravel()
    member = (ring[:, None] // 2 == np.arange(side)).astype(np.float64)
    member[0] = 0  # the mean
    spectrum = np.abs(dctn(patches, axes=(1, 2), norm="ortho")).reshape(len(patches), -1) @ (member / member.sum(0))
    gradient = np.hypot(np.diff(patches, axis=1)[:, :, 1:], np.diff(patches, axis=2)[:, 1:]).reshape(len(patches), -1)
    shares = np.stack([(gradient > bound).mean(1) for bound in GRADIENTS], axis=1)
    values = np.linalg.svd(patches - patches.mean((1, 2), keepdims=True), compute_uv=False)
    return np.concatenate([np.log(spectrum + 1e-3), shares, np.log(values[:, :-1] + 1e-2)], axis=1)


def probabilities(crafted: np.ndarray, patches: np.ndarray, known: dict[str, np.ndarray]) -> np.ndarray:
    """The probabilities of the levels, float64 [N, LEVELS], of hand-crafted features and the larger patches."""
    from scipy.special import softmax

    deep = np.concatenate([_deep(patches[n : n + 512], known) for n in range(0, len(patches), 512)])
    features = np.concatenate([(crafted - known["mean"]) / known["deviation"], deep], axis=1)
    hidden = np.maximum(features @ known["hidden.weight"].T + known["hidden.bias"], 0)
    return np.asarray(softmax(hidden @ known["level.weight"].T + known["level.bias"], axis=1))


def normalised(patches: np.ndarray) -> np.ndarray:
    """What the network gets: without the mean, and in units of the standard deviation and two 8-bit levels."""
    centred = patches - patches.mean((1, 2), keepdims=True)
    return np.asarray(centred / (centred.std((1, 2), keepdims=True) + 2 / 255))


def _deep(patches: np.ndarray, known: dict[str, np.ndarray]) -> np.ndarray:
    """The network's features, float64 [N, C], of patches [N, 27, 27]: the mean of the last filters' positive responses."""
    maps = normalised(patches)[..., None].astype(np.float32)
    for layer, (side, stride) in enumerate(CONVOLUTIONS):
        weight = known[f"filters{layer}.weight"]  # [out, in, side, side]
        windows = np.lib.stride_tricks.sliding_window_view(maps, (side, side), axis=(1, 2))[:, ::stride, ::stride]
        flat = windows.reshape(*windows.shape[:3], -1) @ weight.reshape(len(weight), -1).T.astype(np.float32)
        maps = np.maximum(flat + known[f"filters{layer}.bias"].astype(np.float32), 0)
    return maps.mean((1, 2)).astype(np.float64)
