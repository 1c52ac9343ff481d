"""The tables of GPU classes and small devices, and what they refuse."""

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
    ("precision", "since"),
    [("tf32", "8.0"), ("bf16", "8.0"), ("fp8", "8.9"), ("int8", "6.1"), ("fp32", "0.0"), ("fp16", "0.0")],
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


@pytest.mark.parametrize(
    ("name", "precision", "advertised", "sparsity"),
    [
        # TFLOP/s or TOP/s that NVIDIA gives for the GPU alone; those of Ampere count sparse operations, twice as many
        ("nano", "fp16", 0.472, 1),
        ("xavier", "fp16", 11, 1),
        ("xavier", "int8", 22, 1),
        ("orin", "int8", 170, 2),
        ("orinnano", "int8", 40, 2),
        ("orinnanosuper", "int8", 67, 2),
    ],
)
def test_a_jetson_is_what_its_maker_says(name: str, precision: str, advertised: float, sparsity: int) -> None:
    # NVIDIA rounds to two digits
    assert gpus.get(name).tflops[precision] * sparsity == pytest.approx(advertised, rel=0.03)


def test_a_jetson_s_tensorrt_comes_with_its_last_jetpack() -> None:
    jetsons = [g for g in gpus.GPUS.values() if g.title.startswith("Jetson")]
    assert jetsons and all(g.jetpacks for g in jetsons)
    for gpu in jetsons:
        assert gpu.last_tensorrt in (None, gpus.JETPACKS[gpu.jetpacks[-1]]), gpu.name
        assert all(gpus.JETPACKS[j] in gpu.advice and f"JetPack {j}" in gpu.advice for j in gpu.jetpacks)


def test_the_raspberry_pi_is_what_its_makers_say() -> None:
    pi = gpus.find("pi5")
    assert isinstance(pi, gpus.CPU)
    # cores, clock, pipelines, bits of a pipeline, operations of a lane: FMLA multiplies and adds, SDOT does so with bytes
    per_cycle = {"fp32": 128 / 32 * 2, "fp16": 128 / 16 * 2, "int8": 128 / 8 * 2}
    for precision, operations in per_cycle.items():
        assert pi.tflops[precision] == pytest.approx(pi.cores * 2.4e9 * 2 * operations / 1e12, rel=0.01)
    assert pi.tflops.keys() == per_cycle.keys()
    assert pi.bandwidth == pytest.approx(32 / 8 * 4.267, rel=0.01)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *((name, "gtx1080ti") for name in ("GTX 1080 Ti", "gtx-1080-ti", "GeForce GTX 1080 Ti")),
        ("Jetson Nano", "nano"),
        ("NVIDIA Jetson AGX Orin", "orin"),
        ("Jetson Orin Nano Super", "orinnanosuper"),
        ("AGX Xavier", "xavier"),
        ("Raspberry Pi 5", "pi5"),
    ],
)
def test_names_are_found_however_written(name: str, found: str) -> None:
    assert gpus.find(name).name == found


def test_nothing_is_built_for_a_board_without_a_gpu() -> None:
    with pytest.raises(UsageError, match=r"no GPU to build for: leave `gpus` out, and write \.onnx, \.xml or \.pte"):
        gpus.get("pi5")


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
        ("orin", "tensorrt_rtx", "1.7.1", [], "compute capability 8.7", "trtexec of JetPack 6.2 (TensorRT 10.3) or"),
        ("orinnano", "tensorrt_rtx", "1.7.1", [], "compute capability 8.7", "JetPack 7.2 (TensorRT 10.16)"),
        (
            "xavier",
            "tensorrt_rtx",
            "1.7.1",
            [],
            "compute capability 7.2",
            "JetPack 5.1 (TensorRT 8.5.2), which is not on",
        ),
        (
            "nano",
            "tensorrt_rtx",
            "1.7.1",
            [],
            "compute capability 5.3",
            "JetPack 4.6 (TensorRT 8.2.1), which is not on",
        ),
        ("xaviernx", "tensorrt", "8.6.1", [], "does not support Volta", "the Jetson with trtexec of JetPack 5.1"),
        ("nano", "tensorrt", "11.4.0", [], "does not support Maxwell", "the Jetson with trtexec of JetPack 4.6"),
        ("nano", "tensorrt", "8.2.1", ["int8"], "no INT8, which came with Pascal", "`precision` fp16"),
        ("xavier", "tensorrt", "8.5.2", ["bf16"], "no BF16, which came with Ampere", "`precision` fp16"),
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
        ("orinnano", "tensorrt", "10.3.0.30", ["fp16", "bf16", "int8"]),
        ("xavier", "tensorrt", "8.5.2.2", ["fp16", "int8"]),
        ("nano", "tensorrt", "8.2.1.8", ["fp32", "fp16"]),
    ],
)
def test_what_a_card_can_do_is_not_refused(
    gpu: str, flavour: gpus.Flavour, version: str, precisions: list[str]
) -> None:
    assert gpus.refusals(gpus.get(gpu), flavour, version, precisions) == []


def test_a_cpu_lacks_a_precision_that_no_generation_brings() -> None:
    (said,) = filter(None, (gpus.precision_refusal(gpus.find("pi5"), p) for p in ("fp32", "fp16", "int8", "bf16")))
    assert said == "the Raspberry Pi 5 (Cortex-A76) has no BF16: export with `precision` fp16"


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
