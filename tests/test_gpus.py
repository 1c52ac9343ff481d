"""The table of GPU classes and what it refuses."""

import pytest

from r2mrf_deploy import gpus
from r2mrf_deploy.errors import UsageError


def test_table_is_consistent() -> None:
    for name, gpu in gpus.GPUS.items():
        assert gpu.name == name
        assert "{}.{}".format(*divmod(gpus.sm(gpu.compute_capability), 10)) == gpu.compute_capability
        assert gpu.bandwidth > 0 and gpu.memory > 0
        assert set(gpu.tflops) <= set(gpus.PRECISIONS) and all(rate > 0 for rate in gpu.tflops.values())


@pytest.mark.parametrize(
    ("precision", "since"), [("tf32", "8.0"), ("bf16", "8.0"), ("fp8", "8.9"), ("fp32", "0.0"), ("fp16", "0.0")]
)
def test_a_precision_is_supported_from_its_generation_on(precision: str, since: str) -> None:
    for gpu in gpus.GPUS.values():
        assert (precision in gpu.tflops) == (gpus.sm(gpu.compute_capability) >= gpus.sm(since)), gpu.name


def test_the_1080_ti_is_what_its_maker_says() -> None:
    gpu = gpus.get("gtx1080ti")
    # 3,584 cores at 1.582 GHz, two operations a cycle; 352 bits at 11 Gbit/s; FP16 at 1/64; DP4A is four times FP32
    assert gpu.tflops["fp32"] == pytest.approx(3584 * 1.582e9 * 2 / 1e12, rel=0.01)
    assert gpu.bandwidth == pytest.approx(352 / 8 * 11, rel=0.01)
    assert gpu.tflops["fp16"] == pytest.approx(gpu.tflops["fp32"] / 64, rel=0.01)
    assert gpu.tflops["int8"] == pytest.approx(gpu.tflops["fp32"] * 4, rel=0.01)


@pytest.mark.parametrize("name", ["GTX 1080 Ti", "gtx-1080-ti", "GeForce GTX 1080 Ti"])
def test_names_are_found_however_written(name: str) -> None:
    assert gpus.get(name).name == "gtx1080ti"


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'rtx3090'"):
        gpus.get("rtx3099")


@pytest.mark.parametrize(
    ("gpu", "flavour", "version", "precisions", "reason", "cure"),
    [
        ("gtx1080ti", "tensorrt", "8.6.1", ["fp16"], "computes FP16 at 1/64", "`precision` fp32"),
        ("gtx1080ti", "tensorrt", "8.6.1", ["bf16"], "no BF16, which came with Ampere", "`precision` fp32"),
        (
            "gtx1080ti",
            "tensorrt",
            "10.3.0",
            [],
            "TensorRT 10.3.0 does not support Pascal",
            "8.6.1: build with that version",
        ),
        (
            "gtx1080ti",
            "tensorrt",
            "11.4.0",
            [],
            "TensorRT 11.4.0 does not support Pascal",
            "8.6.1: build with that version",
        ),
        ("gtx1080ti", "tensorrt_rtx", "1.7.1", [], "does not support Pascal", "tensorrt 8.6.1"),
        ("v100", "tensorrt", "11.4.0", ["fp16"], "does not support Volta", "10.4"),
        ("v100", "tensorrt_rtx", "1.7.1", [], "does not support Volta", "tensorrt 10.4"),
        ("h200", "tensorrt_rtx", "1.7.1", ["fp16"], "does not support Hopper", "the package tensorrt, or"),
        ("orin", "tensorrt_rtx", "1.7.1", [], "compute capability 8.7", "the package tensorrt, or"),
        ("rtx2080ti", "tensorrt_rtx", "1.7.1", ["bf16"], "no BF16, which came with Ampere", "`precision` fp16"),
        ("rtx3090", "tensorrt", "11.4.0", ["fp8"], "no FP8, which came with Ada", "`precision` fp16"),
    ],
)
def test_refusals_give_reason_and_cure(
    gpu: str, flavour: gpus.Flavour, version: str, precisions: list[str], reason: str, cure: str
) -> None:
    (said,) = gpus.refusals(gpus.get(gpu), flavour, version, precisions)
    assert reason in said
    assert cure in said.partition(reason)[2]


def test_every_reason_is_given_at_once() -> None:
    assert len(gpus.refusals(gpus.get("gtx1080ti"), "tensorrt_rtx", "1.7.1", ["fp16", "bf16"])) == 3


@pytest.mark.parametrize(
    ("gpu", "flavour", "version", "precisions"),
    [
        ("gtx1080ti", "tensorrt", "8.6.1.6", ["fp32", "int8"]),
        ("v100", "tensorrt", "10.4.0.26", ["fp16"]),
        ("rtx2080ti", "tensorrt_rtx", "1.7.1", ["fp16", "int8"]),
        ("rtx3090", "tensorrt_rtx", "1.7.1", ["fp32", "fp16", "bf16", "int8"]),
        ("rtx4090", "tensorrt", "11.4.0", ["fp8"]),
        ("h200", "tensorrt", "11.4.0", ["fp8", "fp16"]),
        ("orin", "tensorrt", "11.4.0", ["fp16"]),
    ],
)
def test_what_a_card_can_do_is_not_refused(
    gpu: str, flavour: gpus.Flavour, version: str, precisions: list[str]
) -> None:
    assert gpus.refusals(gpus.get(gpu), flavour, version, precisions) == []


@pytest.mark.parametrize(
    ("major", "capability", "refused"),
    [
        (13, "6.1", True),
        (13, "7.0", True),
        (13, "7.5", False),
        (12, "6.1", False),
        (None, "6.1", False),
        (13, None, False),
    ],
)
def test_cuda_13_does_not_support_what_is_older_than_turing(
    major: int | None, capability: str | None, refused: bool
) -> None:
    assert (gpus.too_old_for_cuda(major, capability) is not None) == refused
