"""The networks' own operators: torch.export sees each as one, torch.compile what is inside, and both are told the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from r2mrf_deploy import networks
from r2mrf_deploy.networks.crop import crop
from r2mrf_deploy.networks.same import SameConv2d
from r2mrf_deploy.networks.upsample import upsample


class Upsample(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return upsample(x, (12, 9))


class Crop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return crop(x, (4, 5))


def same() -> nn.Module:
    return SameConv2d(8, 4, 3, stride=2, bias=True)


IMAGE = torch.randn(1, 8, 6, 7)
OPERATORS = {
    "upsample_bilinear": (Upsample, (12, 9)),
    "crop": (Crop, (4, 5)),
    "conv_same": (same, (torch.randn(4, 8, 3, 3), torch.randn(4), [2, 2], 1)),
}
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_what_a_tracer_is_told_of_shape_dtype_and_strides_is_true(name: str, layout: str) -> None:
    """Inductor compiles by these strides: its code fails where a result that it takes for contiguous is channels-last."""
    operator = getattr(torch.ops.r2mrf, name).default
    arguments = (IMAGE.contiguous(memory_format=LAYOUTS[layout]), *OPERATORS[name][1])
    checked = torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
    assert set(checked.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_opaque_to_torch_export_alone(name: str) -> None:
    make: Callable[[], nn.Module] = OPERATORS[name][0]
    module = make().eval()
    exported = torch.export.export(module, (IMAGE,), strict=False)
    assert f"r2mrf.{name}" in str(exported.graph)
    seen: list[str] = []

    def record(graph: Any, _: Any) -> Any:
        seen.append(str(graph.graph))
        return graph.forward

    compiled = torch.compile(module, backend=record, fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(IMAGE), module(IMAGE))
    torch._dynamo.reset()
    assert len(seen) == 1 and "r2mrf" not in seen[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.presets())
def test_torch_compile_traces_every_network_whole_at_a_size_and_at_another(name: str) -> None:
    network = networks.create(*networks.preset(name)).eval()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)  # all but the code generation
    with torch.inference_mode():
        for size in ((64, 96), (71, 97)):
            image = torch.randn(1, 3, *size).contiguous(memory_format=torch.channels_last)
            found, wanted = (o[0] if isinstance(o, tuple) else o for o in (compiled(image), network(image)))
            assert (found - wanted).abs().max() <= 1e-4 * wanted.std() + 1e-7  # sums in another order
    torch._dynamo.reset()
