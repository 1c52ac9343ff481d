"""trtexec's notation: what is read, and what is refused."""

from __future__ import annotations

import pytest

from r2mrf_deploy.cli.trtexec import parse_pool_sizes, parse_shapes
from r2mrf_deploy.errors import UsageError


def test_trtexecs_notation() -> None:
    assert parse_shapes("image:1x320x320x3,a:b:2x1") == {"image": (1, 320, 320, 3), "a:b": (2, 1)}
    assert parse_pool_sizes("workspace:1024,tacticSharedMem:64K") == {"workspace": 1 << 30, "tacticSharedMem": 1 << 16}
    assert parse_pool_sizes("workspace:0.5G,dlaSRAM:12B") == {"workspace": 1 << 29, "dlaSRAM": 12}
    for text in ("image", "image:", "image:1xx3", "image:0x3", ":1x2", "image:1x-3"):
        with pytest.raises(UsageError, match="is not a shape"):
            parse_shapes(text)
    for text in ("workspace", "workspace:", "workspace:x", "workspace:1T", "workspace:-1", "workspace:0"):
        with pytest.raises(UsageError, match="is not a size"):
            parse_pool_sizes(text)
    with pytest.raises(UsageError, match="did you mean 'workspace'"):
        parse_pool_sizes("worksapce:1")
