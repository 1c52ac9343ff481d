"""With which library, and for which GPUs, an engine is built; and what is refused on a GPU that is at hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from r2mrf_deploy import gpus
from r2mrf_deploy.errors import BuildError, RuntimeUnavailable
from r2mrf_deploy.formats.plan import PlanHeader
from r2mrf_deploy.runtimes.cuda import bindings
from r2mrf_deploy.runtimes.tensorrt import api, targets
from r2mrf_deploy.runtimes.tensorrt.api import Library
from r2mrf_deploy.runtimes.tensorrt.targets import Targets


def test_fp8_without_a_name_leaves_out_what_cannot_run_it() -> None:
    targets = Targets(Library("tensorrt_rtx", SimpleNamespace(__version__="1.7.1")), (), None)
    assert targets.requested(["fp16"]) == []
    assert targets.requested(["fp8", "fp16"]) == [89, 120, 121]


def native(version: str, *named: str, device: bindings.Device | None = None) -> Targets:
    library = Library("tensorrt", SimpleNamespace(__version__=version))
    return Targets(library, tuple(gpus.get(n) for n in named), device, "no driver")


def test_tensorrt_builds_only_for_the_gpu_at_hand() -> None:
    device = bindings.Device("GeForce RTX 3090", "8.6")
    native("11.4.0", "rtx3060", device=device).refuse(["fp16"])
    with pytest.raises(BuildError, match=r"`gpus` rtx4090: .*GPU at hand, a GeForce RTX 3090 \(8.6, not 8.9\)"):
        native("11.4.0", "rtx4090", device=device).refuse(["fp16"])
    with pytest.raises(RuntimeUnavailable, match=r"can use none here .*TensorRT-RTX builds without a GPU"):
        native("11.4.0").refuse(["fp16"])


def test_a_gpu_whose_driver_is_too_old_is_as_if_it_were_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CUDA cannot start, TensorRT's objects are invalid, and the next call crashes."""
    asked: list[Library] = []
    monkeypatch.setattr(bindings, "device", lambda: bindings.Device("GeForce RTX 3090", "8.6"))
    monkeypatch.setattr(api, "load", lambda flavour: Library(flavour, SimpleNamespace(__version__="11.4")))
    monkeypatch.setattr(targets.plan_header, "parse", lambda *_: PlanHeader("tensorrt_rtx", "11.4", ()))
    monkeypatch.setattr(targets, "achieved_precision", lambda library, plan: asked.append(library) or "fp16")
    for driver, usable in (("it is too old", False), (None, True)):
        monkeypatch.setattr(api, "driver_refusal", lambda flavour, driver=driver: driver)
        rtx, native = (Targets.choose([], flavour) for flavour in ("tensorrt_rtx", "tensorrt"))
        said = rtx.record(b"", {})
        assert said.built_without_gpu != usable and bool(asked) == usable
        if usable:
            native.refuse([])
        else:
            with pytest.raises(RuntimeUnavailable, match=r"can use none here \(it is too old\)"):
                native.refuse([])


def test_a_pascal_at_hand_is_refused_fp16_and_tensorrt_10() -> None:
    device = bindings.Device("GeForce GTX 1080", "6.1")
    native("8.6.1", device=device).refuse(["fp32", "int8"])
    with pytest.raises(BuildError, match=r"^the GeForce GTX 1080 \(Pascal\) computes FP16 at 1/64 .*`precision` fp32"):
        native("8.6.1", device=device).refuse(["fp16", "fp32"])
    with pytest.raises(BuildError, match=r"^TensorRT 10\.3\.0 does not support Pascal .*8\.6\.1"):
        native("10.3.0", device=device).refuse(["fp32"])


@pytest.mark.parametrize(
    ("installed", "at_hand", "named", "chosen"),
    [
        ({"tensorrt", "tensorrt_rtx"}, "rtx3090", [], "tensorrt"),
        ({"tensorrt", "tensorrt_rtx"}, "rtx3090", ["rtx3060"], "tensorrt"),
        ({"tensorrt", "tensorrt_rtx"}, "h200", ["rtx3090"], "tensorrt_rtx"),
        ({"tensorrt", "tensorrt_rtx"}, None, [], "tensorrt_rtx"),
        ({"tensorrt"}, None, [], "tensorrt"),  # and is refused for want of a GPU
        ({"tensorrt_rtx"}, "rtx3090", [], "tensorrt_rtx"),
    ],
)
def test_which_library_builds(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], at_hand: str | None, named: list[str], chosen: str
) -> None:
    monkeypatch.setattr(api, "installed", lambda: dict.fromkeys(installed, "11"))
    gpu = gpus.get(at_hand) if at_hand else None
    device = bindings.Device(gpu.title, gpu.compute_capability) if gpu else None
    assert targets._flavour([gpus.get(n) for n in named], device) == chosen
