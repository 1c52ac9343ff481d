"""trtexec's notation on the command line: shapes, the sizes of memory pools, and precisions."""

from __future__ import annotations

from r2mrf_deploy.errors import UsageError, did_you_mean
from r2mrf_deploy.export.options import Precision
from r2mrf_deploy.runtimes.tensorrt.options import POOLS

_UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Read trtexec's notation, `image:1x320x320x3,mask:1x1x320x320`. Raises UsageError if the text has another form."""
    shapes = {}
    for item in filter(None, text.split(",")):
        name, colon, dims = item.rpartition(":")
        numbers = dims.split("x")
        if not colon or not name or not all(n.isdigit() and int(n) > 0 for n in numbers):
            raise UsageError(f"{item!r} is not a shape: write name:1x320x320x3, with commas between inputs")
        shapes[name.strip()] = tuple(map(int, numbers))
    return shapes


def parse_pool_sizes(text: str) -> dict[str, int]:
    """Read trtexec's notation for memory pools, `workspace:1024` (MiB) or `workspace:2G`, into bytes. Raises UsageError if
    there is no such pool, or if the size has another form."""
    sizes = {}
    for item in filter(None, text.split(",")):
        name, _, size = item.strip().partition(":")
        if name not in POOLS:
            raise UsageError(f"no memory pool {name!r}: {did_you_mean(name, POOLS)}")
        number, unit = (size[:-1], size[-1].upper()) if size[-1:].isalpha() else (size, "M")
        try:
            sizes[name] = int(float(number) * _UNITS[unit])
            if sizes[name] <= 0:
                raise ValueError
        except (KeyError, ValueError, OverflowError):
            raise UsageError(f"{size!r} is not a size: write MiB as 1024, or 512K, 2G, 4096B") from None
    return sizes


def one_precision(precision: Precision | None, **synonyms: bool) -> Precision | None:
    """The precision that --precision, or one of trtexec's --fp16, --bf16, --int8, asks for; None if none does.

    Raises:
        UsageError: they ask for several: a graph has one, and trtexec's mixtures are what `keep` is for.
    """
    asked = {name for name, given in synonyms.items() if given} | ({precision} if precision else set())
    if len(asked) > 1:
        raise UsageError(
            f"{' and '.join(sorted(asked))} exclude each other: ask for one precision, and `keep` nodes in FP32"
        )
    return asked.pop() if asked else None  # type: ignore[return-value]
