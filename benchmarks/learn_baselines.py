"""Learns what the baselines `jnb`, `dbdf`, `ksfv` and `dhde` ship with, from the photographs of the split `cuhk-fit`.

    python benchmarks/learn_baselines.py --data CUHK

CUHK has the training photographs in `image/` and their masks in `gt/`, where white is blurred. No others are
used, not those of `cuhk-validation` either. All that is random comes from `--seed`; the same machine writes the same bytes
again.
`--only NAME` learns one of them. `dhde` needs PyTorch. The files go to `r2mrf_deploy/baselines/learned/`, or to `--output`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.linalg import eigh
from scipy.ndimage import binary_erosion, gaussian_filter, gaussian_filter1d
from scipy.special import expit

from r2mrf_deploy import images
from r2mrf_deploy.baselines import dbdf, dhde, jnb, ksfv
from r2mrf_deploy.baselines.parameters import FOLDER
from r2mrf_deploy.baselines.windows import luminance
from r2mrf_deploy.datasets import Dataset, read_dataset
from r2mrf_deploy.manifest import NEUTRAL

MARGIN = 6
"""Pixels around the edges of masks from which nothing is learned."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CUHK's photographs: image/ and gt/")
    parser.add_argument("--only", choices=LEARNERS, help="learn this one")
    parser.add_argument("--every", type=int, help="use every n-th photograph of the split, by default as shipped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=FOLDER)
    given = parser.parse_args()
    data = read_dataset(given.data, white="blurred", split="cuhk-fit", dataset="cuhk")
    given.output.mkdir(parents=True, exist_ok=True)
    for name in [given.only] if given.only else LEARNERS:
        started = time.monotonic()
        learn, every = LEARNERS[name]
        found = learn(data, given.every or every, np.random.default_rng(given.seed))
        path = given.output / f"{name}.npz"
        np.savez_compressed(path, **{key: np.asarray(value, np.float16) for key, value in found.items()})
        print(f"{path}: {path.stat().st_size:,} bytes, {time.monotonic() - started:.0f} s")


def learn_jnb(data: Dataset, every: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The dictionary, by the method of optimal directions, and the curve, by logistic regression."""
    blurred = np.concatenate([_patches(grey, ~mask, jnb.PATCH, 200, rng) for grey, mask in _photographs(data, every)])
    patches = blurred.reshape(len(blurred), -1)
    patches = patches - patches.mean(1, keepdims=True)
    detailed = patches[(patches**2).sum(1) > jnb.TOLERANCE / 2]
    detailed /= np.linalg.norm(detailed, axis=1, keepdims=True)
    atoms = _dictionary(rng.permutation(detailed)[:12000], rng)
    numbers, sharp = [], []
    for grey, mask in _photographs(data, every, start=1):
        found, rows, columns = jnb.numbers_of_atoms(grey, atoms)
        numbers.append(found.ravel())
        sharp.append(mask[np.ix_(np.minimum(rows, len(mask) - 1), np.minimum(columns, mask.shape[1] - 1))].ravel())
    return {"atoms": atoms, "curve": _logistic(np.concatenate(numbers), np.concatenate(sharp))}


def _dictionary(patches: np.ndarray, rng: np.random.Generator, rounds: int = 15, sparsity: int = 4) -> np.ndarray:
    atoms = patches[rng.choice(len(patches), jnb.ATOMS, replace=False)]
    for _ in range(rounds):
        chosen, _ = jnb.pursue(patches, atoms, -1.0, sparsity)
        some = atoms[chosen]  # [N, sparsity, P]
        products = some @ some.swapaxes(1, 2) + 1e-9 * np.eye(sparsity)
        codes = np.zeros((len(patches), jnb.ATOMS))
        solved = np.linalg.solve(products, some @ patches[:, :, None])[..., 0]
        np.put_along_axis(codes, chosen, solved, axis=1)
        atoms = np.linalg.solve(codes.T @ codes + 1e-6 * np.eye(jnb.ATOMS), codes.T @ patches)
        length = np.linalg.norm(atoms, axis=1, keepdims=True)
        unused = length[:, 0] < 1e-3
        atoms[unused], length[unused] = patches[rng.choice(len(patches), unused.sum())], 1.0
        atoms /= length
    return atoms


BINS = 24
"""Of the histograms of `dbdf`."""


def learn_dbdf(data: Dataset, every: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The filters, the histograms' ratios and the curves."""
    filters = _filters(data, every, rng)
    described: list[list[np.ndarray]] = [[] for _ in dbdf.WINDOWS]
    sharp = []
    for grey, mask in _photographs(data, every):
        rows, columns = (np.arange(2, n, 8) for n in grey.shape)
        for found, side in zip(described, dbdf.WINDOWS, strict=True):
            found.append(dbdf.features(grey, side, filters, rows, columns).reshape(dbdf.FEATURES, -1))
        sharp.append(mask[np.ix_(rows, columns)].ravel())
    labels = np.concatenate(sharp)
    ranges, ratios, curves = [], [], []
    for found in described:
        values = np.concatenate(found, axis=1)
        ends = np.quantile(values, (0.005, 0.995), axis=1).T.astype(np.float16).astype(np.float64)
        ranges.append(ends)
        ratios.append([_log_ratio(v, labels, *end) for v, end in zip(values, ends, strict=True)])
        curves.append(_logistic(dbdf.evidence(values, ranges[-1], np.asarray(ratios[-1])), labels))
    arrays = {"filters": filters, "ranges": ranges, "ratios": ratios, "curves": curves}
    return {key: np.asarray(value) for key, value in arrays.items()}


def _filters(data: Dataset, every: int, rng: np.random.Generator) -> np.ndarray:
    """Those whose responses vary most in focus, relative to out of focus: generalised eigenvectors of the covariances of
    patches, averaged over the eight mirror images of a square."""
    side, covariances = dbdf.FILTER, []
    symmetric = _symmetric(side)
    for sharp in (True, False):
        patches = [_patches(grey, mask == sharp, side, 300, rng) for grey, mask in _photographs(data, every)]
        coefficients = np.concatenate(patches).reshape(-1, side * side) @ symmetric.T
        scale = np.maximum((coefficients**2).sum(1, keepdims=True), 1e-4)  # so that no photograph outweighs the others
        covariances.append(coefficients.T @ (coefficients / scale) / len(coefficients))
    noise = 1e-4 * np.trace(covariances[1]) * np.eye(len(symmetric))
    _, vectors = eigh(covariances[0] + noise, covariances[1] + noise)
    best = vectors[:, ::-1][:, : dbdf.FILTERS].T @ symmetric
    best /= np.linalg.norm(best, axis=1, keepdims=True)
    return best.reshape(-1, side, side).astype(np.float16).astype(np.float64)


def _symmetric(side: int) -> np.ndarray:
    """An orthonormal basis of the square patterns of mean 0 that equal their mirror images: float64 [D, side * side]."""
    y, x = np.abs(np.indices((side, side)) - side // 2)
    orbit = np.maximum(y, x) * side + np.minimum(y, x)
    basis = np.stack([(orbit == o).ravel() / np.sqrt((orbit == o).sum()) for o in np.unique(orbit)])
    flat = basis.sum(1) / side
    _, _, rows = np.linalg.svd(flat[None])
    return rows[1:] @ basis


def _log_ratio(values: np.ndarray, labels: np.ndarray, low: float, high: float) -> np.ndarray:
    """The log ratio of the densities of `values` in focus and out of focus, in BINS bins, from low to high."""
    half = (high - low) / (BINS - 1) / 2
    edges = np.linspace(low - half, high + half, BINS + 1)
    inside = np.clip(values, low, high)
    counts = (
        gaussian_filter1d(np.histogram(inside[part], edges)[0] + 5.0, 1, mode="nearest") for part in (labels, ~labels)
    )
    sharp, blurred = (count / count.sum() for count in counts)
    return np.log(sharp / blurred)


def learn_ksfv(data: Dataset, every: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The reduced support vector machine, by Newton's method on the squared hinge loss."""
    described, sharp = [], []
    for grey, mask in _photographs(data, every):
        rows, columns = _places(mask, 120, rng)
        described.append(ksfv.features(grey)[:, rows, columns].T)
        sharp.append(mask[rows, columns])
    features, labels = np.concatenate(described), np.concatenate(sharp)
    mean, deviation = features.mean(0), features.std(0)
    features = (features - mean) / deviation
    vectors = features[rng.choice(len(features), 160, replace=False)].astype(np.float16).astype(np.float64)
    hidden = np.concatenate([ksfv.similar(features, vectors), np.ones((len(features), 1))], axis=1)
    signs, weights = np.where(labels, 1.0, -1.0), np.zeros(hidden.shape[1])
    penalty = 1.0 * np.eye(len(weights))
    penalty[-1, -1] = 1e-6
    for _ in range(30):
        short = 1 - signs * (hidden @ weights)
        inside = short > 0
        slope = penalty @ weights - hidden[inside].T @ (signs * short)[inside]
        weights -= np.linalg.solve(penalty + hidden[inside].T @ hidden[inside], slope)
    curve = _logistic(hidden @ weights, labels)
    arrays = {"mean": mean, "deviation": deviation, "vectors": vectors, "weights": weights[:-1], "offset": weights[-1:]}
    return arrays | {"curve": curve}


def learn_dhde(data: Dataset, every: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The network's filters and the classifier, by Adam on the cross-entropy of the levels."""
    import torch
    from torch import nn

    torch.manual_seed(int(rng.integers(2**31)))
    torch.set_num_threads(1)
    crafted, patches, labels = _levels(data, every, rng)
    mean, deviation = crafted.mean(0), crafted.std(0) + 1e-3
    mean, deviation = (a.astype(np.float16).astype(np.float64) for a in (mean, deviation))
    features = torch.from_numpy(((crafted - mean) / deviation).astype(np.float32))
    pictures = torch.from_numpy(dhde.normalised(patches)[:, None].astype(np.float32))
    (first, second), channels = dhde.CONVOLUTIONS, (8, 16)
    network = nn.ModuleDict(
        {
            "filters0": nn.Conv2d(1, channels[0], first[0], first[1]),
            "filters1": nn.Conv2d(channels[0], channels[1], second[0], second[1]),
            "hidden": nn.Linear(features.shape[1] + channels[1], 64),
            "level": nn.Linear(64, len(dhde.LEVELS)),
        }
    )
    wanted, epochs, batch = torch.from_numpy(labels), 12, 128
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * (len(labels) // batch))
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels))[: len(labels) // batch * batch].split(batch):
            seen = torch.flip(pictures[chosen], [axis for axis in (2, 3) if rng.random() < 0.5])
            seen = seen.mT if rng.random() < 0.5 else seen
            deep = network["filters1"](network["filters0"](seen).relu()).relu().mean((2, 3))
            hidden = network["hidden"](torch.cat([features[chosen], deep], 1)).relu()
            hidden = nn.functional.dropout(hidden, 0.2)
            loss = nn.functional.cross_entropy(network["level"](hidden), wanted[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    arrays = {"mean": mean, "deviation": deviation}
    return arrays | {key: value.numpy() for key, value in network.state_dict().items()}


def _levels(data: Dataset, every: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hand-crafted features, patches and levels at edges: as many in focus, blurred to each level, as out of focus."""
    crafted, patches, labels = [], [], []

    def add(grey: np.ndarray, inside: np.ndarray, count: int, level: int) -> None:
        allowed = np.argwhere(inside)
        chosen = allowed[rng.choice(len(allowed), min(count, len(allowed)), replace=False)]
        if len(chosen):
            found = dhde.described(grey, chosen[:, 0], chosen[:, 1])
            crafted.append(found[0])
            patches.append(found[1].astype(np.float32))
            labels.append(np.full(len(chosen), level))

    for grey, mask in _photographs(data, every):
        sharp, blurred = (binary_erosion(m, iterations=MARGIN, border_value=1) for m in (mask, ~mask))
        add(grey, blurred & dhde.edges(grey), 12 * len(dhde.LEVELS), len(dhde.LEVELS) - 1)
        for level, sigma in enumerate(dhde.LEVELS):
            # the weakest level is a photograph as it is: σ = 0.5 is about what lenses and sensors do to it
            added = np.sqrt(sigma**2 - dhde.LEVELS[0] ** 2)
            noisy = gaussian_filter(grey, added) + rng.normal(0, 0.7 / 255, grey.shape) if level else grey
            seen = np.round(255 * np.clip(noisy, 0, 1)) / 255
            add(seen, sharp & dhde.edges(seen), 12, level)
    return np.concatenate(crafted), np.concatenate(patches), np.concatenate(labels)


def _photographs(data: Dataset, every: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Grey photographs as `eval` gives them to baselines, float64 [H, W], and what is in focus in them, bool [H, W]."""
    for number in range(start, len(data), every):
        image = data.image(number)
        size = images.within(image.shape[:2], (NEUTRAL.longest_side, NEUTRAL.longest_side))
        yield luminance(images.resize(image, size)), images.resize(data.mask(number), size) > 0.5


def _places(mask: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of `count` places at random, none near an edge of the mask."""
    far = np.argwhere(
        binary_erosion(mask, iterations=MARGIN, border_value=1)
        | binary_erosion(~mask, iterations=MARGIN, border_value=1)
    )
    chosen = far[rng.choice(len(far), min(count, len(far)), replace=False)]
    return chosen[:, 0], chosen[:, 1]


def _patches(grey: np.ndarray, inside: np.ndarray, side: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """At most `count` patches [N, side, side] whose middle is inside and not near its edge."""
    windows, half = np.lib.stride_tricks.sliding_window_view(grey, (side, side)), side // 2
    allowed = np.argwhere(
        binary_erosion(inside, iterations=MARGIN, border_value=1)[half:, half:][: windows.shape[0], : windows.shape[1]]
    )
    chosen = allowed[rng.choice(len(allowed), min(count, len(allowed)), replace=False)]
    return windows[chosen[:, 0], chosen[:, 1]]


def _logistic(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Slope and offset of the logistic regression of labels (bool [N]) on x (float [N]), by Newton's method."""
    design, weights = np.stack([x, np.ones(len(x))], axis=1), np.zeros(2)
    for _ in range(30):
        p = expit(design @ weights)
        weights += np.linalg.solve((design * (p * (1 - p))[:, None]).T @ design, design.T @ (labels - p))
    return weights


LEARNERS = {"jnb": (learn_jnb, 6), "dbdf": (learn_dbdf, 6), "ksfv": (learn_ksfv, 6), "dhde": (learn_dhde, 4)}
"""How each is learned, and of every how many photographs the shipped files are."""


if __name__ == "__main__":
    main()
