"""`r2mrf export -o x.pt2`: a checkpoint compiled ahead of time by PyTorch, checked against PyTorch before it is written.

The network is traced as for ONNX and compiled by AOTInductor for this PyTorch and one device. The exact rewrites are
rewrites of ONNX graphs; what is compiled here is the network as it was trained.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r2mrf_deploy import environment
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import ArtifactError, BuildError, RuntimeUnavailable, UsageError
from r2mrf_deploy.export import LARGEST, LARGEST_BATCH, SMALLEST, Exported, ExportOptions
from r2mrf_deploy.files import sha256, write_atomically
from r2mrf_deploy.manifest import Manifest, Target, TensorSpec
from r2mrf_deploy.networks.deployed import Deployed
from r2mrf_deploy.parity.compare import Parity, compare, photographs_for, sample_inputs
from r2mrf_deploy.runtimes.aotinductor import AOTInductor, Package, quiet, target_here
from r2mrf_deploy.runtimes.pytorch.cuda import cuda_availability
from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner
from r2mrf_deploy.runtimes.pytorch.execution_context import precision

DEVICES = ("cpu", "cuda")


def to_aotinductor(
    checkpoint: Path | str,
    path: Path | str | None = None,
    options: ExportOptions | None = None,
    *,
    device: str | None = None,
    network: str | None = None,
    settings: Mapping[str, str] | None = None,
    phase: Callable[[str], None] | None = None,
) -> Exported:
    """Compile a checkpoint into `x.pt2` and `x.pt2.json`. It takes half a minute or more.

    Args:
        checkpoint: a checkpoint or a plain state dict.
        path: by default beside the checkpoint.
        options: `opset` and `optimize` are ONNX's, and are left at their defaults.
        device: "cuda" or "cpu"; by default the GPU, where there is one.
        network, settings: as for `Checkpoint.load`.
        phase: called with the name of each phase as it begins.

    Raises:
        InputError, CheckpointError, UsageError: the checkpoint or an option is wrong.
        RuntimeUnavailable: no such device, or no C++ compiler.
        BuildError: PyTorch cannot compile the network.
        ArtifactError: the code does not compute what PyTorch does, or the file cannot be written; nothing is written.
    """
    options = options or ExportOptions()
    say = phase or (lambda _: None)
    output = Path(path) if path else Path(checkpoint).with_suffix(".pt2")
    _check_options(output, options)
    chosen = _device(device)
    say("reading the checkpoint")
    defaults = {"steps": str(options.steps)} if options.steps else {}
    loaded = Checkpoint.load(checkpoint, network=network, settings=settings, defaults=defaults)
    deployed = Deployed(
        loaded.module(), loaded.preprocess, io=options.io, steps=options.steps, all_steps=options.all_steps
    )
    say("tracing")
    program = _trace(deployed.eval().requires_grad_(False).to(chosen), options)
    manifest = _describe(output, loaded, deployed, options, program, target_here(chosen))
    checks: list[Parity] = []

    def write_checked(temporary: Path) -> None:
        say("compiling")
        _compile(program, temporary, manifest)
        say("comparing with PyTorch")
        checks.append(_check(temporary, output.name, manifest, loaded, options))

    write_atomically(output, write_checked)
    known = {"sha256": sha256(output), "bytes": output.stat().st_size, "parity": [checks[0].to_dict()]}
    manifest = manifest.model_copy(update=known)
    manifest.save(output)
    return Exported(output, manifest, checks[0], (checks[0].reason,) if checks[0].reason else ())


def _check_options(output: Path, options: ExportOptions) -> None:
    if output.suffix != ".pt2":
        raise UsageError(f"{output}: an AOTInductor package ends in .pt2")
    usual = ExportOptions()
    if options.opset != usual.opset:
        raise UsageError("--opset is ONNX's and means nothing for a .pt2 package: leave it out")
    if options.optimize != usual.optimize:
        raise UsageError("--no-optimize means nothing for a .pt2 package: the rewrites are ONNX's, and are not applied")
    if options.precision != usual.precision:
        raise UsageError(
            "--precision is of ONNX graphs: for a .pt2 package leave it out; pytorch-cuda-fp16 runs in FP16"
        )
    if min(options.size) < 32 or options.batch < 1:
        size = f"{options.size[0]}x{options.size[1]}"
        raise UsageError(f"{size}, batch {options.batch} is too small: the deepest features are at 1/32")


def _device(name: str | None) -> str:
    """The device to compile for.

    Raises:
        UsageError: it has no such name.
        RuntimeUnavailable: it, or a compiler, is not here.
    """
    if name not in (None, *DEVICES):
        raise UsageError(f"--device {name}: choose from {', '.join(DEVICES)}")
    gpu = cuda_availability()
    if name == "cuda" and not gpu.ok:
        raise RuntimeUnavailable(f"--device cuda: {gpu.reason}; {gpu.cure}, or use --device cpu")
    if environment.cxx() is None:
        raise RuntimeUnavailable(f"AOTInductor compiles C++ and there is no compiler: {environment.CXX}")
    return name or ("cuda" if gpu.ok else "cpu")


def _trace(deployed: Deployed, options: ExportOptions) -> Any:
    """The network as PyTorch's own operators, an ExportedProgram."""
    further: dict[str, Any] = {}
    written: dict[Any, Callable[..., Any]] = {torch.ops.r2mrf.upsample_bilinear.default: _upsample}
    if options.dynamic:
        written[torch.ops.aten.max_pool2d.default] = max_pool
        free, (low, high) = torch.export.Dim, _range(options)
        names = dict(zip((1, 2) if options.io == "image" else (2, 3), ("height", "width"), strict=True))
        dims = {0: free("batch", min=1, max=LARGEST_BATCH)} | {d: free(n, min=low, max=high) for d, n in names.items()}
        further = {"dynamic_shapes": (dims,), "prefer_deferred_runtime_asserts_over_guards": True}
        if "prefer_deferred_runtime_asserts_over_guards" not in inspect.signature(torch.export.export).parameters:
            raise RuntimeUnavailable("this PyTorch cannot export free sizes: pip install -U torch, or use --size")
        # every size differs from the others, and neither is even: none is taken for a constant or a multiple
        height, width = (min(side | 1, high - 1) for side in options.size)
        if width == height:
            width += 2 if width + 2 <= high else -2
        example = deployed.example(2, height, width)
    else:
        example = deployed.example(options.batch, *options.size)
    with quiet(), torch.no_grad():
        try:
            return torch.export.export(deployed, (example,), strict=False, **further).run_decompositions(written)
        except Exception as e:  # its exceptions share no base class
            raise BuildError(f"PyTorch cannot trace the network: {_first_line(e)}") from None


def _upsample(x: Any, height: Any, width: Any) -> Any:
    return torch.ops.aten.upsample_bilinear2d.vec(x, [height, width], False, None)


def max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Tensor:
    """Max-pooling whose rounding up is written out as padding: [N, C, H, W] to [N, C, h, w], of any dtype of floats.

    PyTorch's compiler settles by the example's size whether rounding up changes anything, and leaves it out where it does
    not. An ahead-of-time package cannot check that at another size: it writes past the end of its memory.

    Raises:
        NotImplementedError: rounding up with a stride that is not the kernel's size, or with padding.
    """
    if ceil_mode:
        steps = list(stride) or list(kernel)
        if steps != list(kernel) or any(padding) or any(d != 1 for d in dilation):
            raise NotImplementedError("max_pool2d that rounds up and overlaps cannot be compiled for free sizes")
        down, right = (-size % step for size, step in zip(x.shape[-2:], (steps[0], steps[-1]), strict=True))
        x = torch.nn.functional.pad(x, (0, right, 0, down), value=-torch.inf)
    return torch.ops.aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation, False)[0]


def _range(options: ExportOptions) -> tuple[int, int]:
    """The least and the greatest side of a dynamic package."""
    return min(SMALLEST, *options.size), max(LARGEST, *options.size)


def _compile(program: Any, path: Path, manifest: Manifest) -> None:
    target = manifest.target
    assert target is not None
    settings: dict[str, Any] = {
        "aot_inductor.metadata": Package.metadata(manifest),
        "cpp.dynamic_threads": True,  # as many as the process that runs it wants
    }
    with quiet(), torch.no_grad(), precision(tf32=False if target.device == "cuda" else None):
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
        except Exception as e:  # its exceptions share no base class
            raise BuildError(f"PyTorch cannot compile the network: {_first_line(e)}; --debug shows the rest") from e


def _check(file: Path, name: str, manifest: Manifest, checkpoint: Checkpoint, options: ExportOptions) -> Parity:
    """Compare the package with PyTorch on a photograph, and a dynamic one where sides round up and down too."""
    reference = PyTorchRunner(checkpoint, io=options.io, steps=options.steps, all_steps=options.all_steps)
    photograph = photographs_for(None)[0]
    with AOTInductor().open(file, manifest) as runner:
        profile = manifest.profiles.get(manifest.inputs[0].name, {})
        inputs = sample_inputs(runner, checkpoint.preprocess, [photograph], profile.get("opt", []))
        if options.dynamic:
            odd = [photograph[:117, :235].copy(), photograph[:234, :118].copy(), photograph[:97, :129].copy()]
            inputs += sample_inputs(runner, checkpoint.preprocess, odd)
        parity = compare(reference, runner, inputs, artifact=name, per_step=options.all_steps)
    if parity.verdict == "fail":
        raise ArtifactError(f"{name} was not written: it does not compute what PyTorch computes; {parity.reason}")
    return parity


def _describe(
    path: Path, checkpoint: Checkpoint, deployed: Deployed, options: ExportOptions, program: Any, target: Target
) -> Manifest:
    """The manifest of a package that is not written yet."""
    free: tuple[int | str, ...] = ("batch", "height", "width")
    spec = deployed.input_spec(*(free if options.dynamic else (options.batch, *options.size)))
    low, high = _range(options)
    profile = {
        "min": _shape(deployed, 1, (low, low)),
        "opt": _shape(deployed, 1, options.size),
        "max": _shape(deployed, LARGEST_BATCH, (high, high)),
    }
    return Manifest(
        file=path.name,
        sha256="",
        bytes=0,
        kind="pt2",
        checkpoint_sha256=checkpoint.sha256,
        network=checkpoint.network,
        config=checkpoint.config.to_dict() | {"steps": deployed.steps},
        inputs=[spec],
        outputs=_output_specs(deployed, program),
        profiles={spec.name: profile} if options.dynamic else {},
        preprocess=checkpoint.preprocess.model_copy(update={"inside": options.io == "image"}),
        parameters=checkpoint.parameters,
        multiply_adds=_multiply_adds(deployed, options.size),
        target=target,
        tools=environment.tool_versions("r2mrf-deploy", "torch", "torchvision"),
    )


def _shape(deployed: Deployed, batch: int, size: tuple[int, int]) -> list[int]:
    return [int(d) for d in deployed.input_spec(batch, *size).shape]


def _output_specs(deployed: Deployed, program: Any) -> list[TensorSpec]:
    nodes = program.graph_module.graph.find_nodes(op="output")[0].args[0]
    named = {0: "batch", 2: "height", 3: "width"}

    def dim(name: str, axis: int, size: Any) -> int | str:
        if isinstance(size, int):
            return size
        return named[axis] if axis == 0 or name == "map" else f"{name}_{axis}"

    return [
        TensorSpec(
            name=name,
            dtype="float32",
            shape=[dim(name, axis, size) for axis, size in enumerate(node.meta["val"].shape)],
            layout="NCHW",
        )
        for name, node in zip(deployed.output_names, nodes, strict=True)
    ]


def _multiply_adds(deployed: Deployed, size: tuple[int, int]) -> int:
    """Of one image, counted without computing anything."""
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.empty(_shape(deployed, 1, size), dtype=deployed.example(1, 1, 1).dtype, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(deployed).to("meta")(image)
    return int(counter.get_total_flops()) // 2


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
