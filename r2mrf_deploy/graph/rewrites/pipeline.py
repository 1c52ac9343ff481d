"""The order of the rewrites, their fixpoint, and the record of what they did."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, ShapeInferencePass

from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.graph.cost import load
from r2mrf_deploy.graph.rewrites.cleanup import cleanup
from r2mrf_deploy.graph.rewrites.commute import commute
from r2mrf_deploy.graph.rewrites.cse import cse
from r2mrf_deploy.graph.rewrites.editor import Editor, Outcome, Rewrite
from r2mrf_deploy.graph.rewrites.fold_affine import fold_affine
from r2mrf_deploy.graph.rewrites.fold_pointwise import fold_pointwise
from r2mrf_deploy.graph.rewrites.fold_sums import fold_sums
from r2mrf_deploy.graph.rewrites.interpolate_last import interpolate_last
from r2mrf_deploy.graph.rewrites.merge_parallel import merge_parallel
from r2mrf_deploy.graph.rewrites.split_concat import split_concat
from r2mrf_deploy.manifest import RewriteRecord

REWRITES: dict[str, Rewrite] = {
    "cleanup": cleanup,
    "cse": cse,
    "fold affine": fold_affine,
    "fold sums": fold_sums,
    "fold pointwise": fold_pointwise,
    "split concat": split_concat,
    "commute": commute,
    "interpolate last": interpolate_last,
    "merge parallel": merge_parallel,
}

_ROUND = (
    *("cleanup", "cse", "fold affine", "fold sums", "fold pointwise"),
    *("split concat", "cse", "commute", "interpolate last", "fold affine", "merge parallel"),
)
"""One round. Equal nodes are shared before they are folded, because folding makes equal convolutions differ. Splitting comes
after the folds, so that it sees final weights, and right before the rewrites that it prepares for."""


def _nothing(editor: Editor) -> Outcome:
    return Outcome()


_WITHOUT_MERGING = REWRITES | {"split concat": partial(split_concat, merging=False), "merge parallel": _nothing}
_WITHOUT_SHARING = _WITHOUT_MERGING | {"split concat": _nothing, "cse": _nothing}
_ATTEMPTS = (("", REWRITES), ("merging", _WITHOUT_MERGING), ("sharing", _WITHOUT_SHARING))
"""What each attempt leaves out in addition to the one before, and its rewrites. The first attempt that does not raise the
peak memory is taken: merged outputs are all alive at once, and a shared one lives until its last reader."""

_MOST_ROUNDS = 20
"""Every rewrite lowers the effort or the number of nodes, so there is a fixpoint; real graphs reach it in two or three."""

_NOMINAL = 320
"""The size of a free dimension when costs are compared."""


@dataclass(frozen=True)
class Optimized:
    """A rewritten model and the record of how it was made."""

    model: onnx.ModelProto
    records: list[RewriteRecord]
    """One for each rewrite that changed something, in the order of their first changes. Multiply-adds are those of the whole
    graph, with free dimensions at a nominal size (batch 1, otherwise 320)."""
    explanations: list[str] = field(default_factory=list)
    """Why near matches of a rewrite were left as they are: "rewrite: where: why"."""


def optimize(model: onnx.ModelProto, *, explain: bool = False) -> Optimized:
    """Rewrite a model without changing its function: exact in real arithmetic; in floats, sums are taken in another order.

    Rewrite the FP32 model before its precision is lowered: in FP16 the order of sums matters more.

    Names, types, shapes and order of inputs and outputs are kept. The result has no more multiply-adds and no higher peak
    of activation memory than the model. The same model always gives the same result, and a result is not changed again.

    Args:
        model: of opset 13 or later, its weights loaded; not changed.
        explain: collect `explanations`.

    Raises:
        GraphError: the model is invalid, too old, or contains something that the rewrites cannot read.
    """
    _check(model)
    explanations: list[str] = []
    for without, rewrites in _ATTEMPTS:
        explanations += [f"pipeline: the whole graph: {without} would raise its peak memory"] if without else []
        editor = _editor(model)
        before = editor.cost()
        records, refusals = _to_fixpoint(editor, rewrites)
        after = editor.cost()
        no_larger = after.peak_activation_bytes <= before.peak_activation_bytes
        if no_larger and after.multiply_adds <= before.multiply_adds:
            result = _finish(editor.model, model) if records else deepcopy(model)
            return Optimized(result, records, [*explanations, *refusals] if explain else [])
    explanations.append("pipeline: the whole graph: so would all other rewrites")
    return Optimized(deepcopy(model), [], explanations if explain else [])


def rewrite_once(model: onnx.ModelProto, rewrite: Rewrite) -> onnx.ModelProto:
    """The model after one pass of one rewrite, which need not be in the pipeline, whatever it costs.

    Raises:
        GraphError: the model is invalid.
    """
    editor = _editor(model)
    return _finish(editor.model, model) if rewrite(editor).count else model


def _to_fixpoint(editor: Editor, rewrites: Mapping[str, Rewrite]) -> tuple[list[RewriteRecord], list[str]]:
    """Run rounds until one changes nothing; the refusals are those of that last round."""
    records: dict[str, RewriteRecord] = {}
    refusals: dict[str, None] = {}
    for _ in range(_MOST_ROUNDS):
        changed = False
        refusals.clear()
        for name in _ROUND:
            before = editor.cost().multiply_adds
            outcome = rewrites[name](editor)
            refusals.update((f"{name}: {refusal}", None) for refusal in outcome.refusals)
            if outcome.count:
                changed = True
                # what other rewrites do between two passes of this one is not counted to it
                first = RewriteRecord(name=name, count=0, multiply_adds_before=before, multiply_adds_after=before)
                record = records.get(name, first)
                after = record.multiply_adds_after + editor.cost().multiply_adds - before
                update = {"count": record.count + outcome.count, "multiply_adds_after": after}
                records[name] = record.model_copy(update=update)
        if not changed:
            break
    return list(records.values()), list(refusals)


def _check(model: onnx.ModelProto) -> None:
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < 13:
        raise GraphError(f"opset {opset} is too old for the rewrites: convert the model to opset 13 or later")
    if model.ir_version < 4:
        raise GraphError(
            f"in IR version {model.ir_version} every weight is an input: save the model again with a recent version of onnx"
        )
    if model.graph.sparse_initializer:
        raise GraphError("the model has sparse weights, which the rewrites cannot read: make them dense")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise GraphError("the model's weights are not loaded: load its external data first")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as e:
        raise GraphError(f"not a valid ONNX model: {' '.join(str(e).split())}") from None
    except ValueError:  # over 2 GB, which the checker cannot take; if the model is invalid, a later step fails
        pass


def _editor(model: onnx.ModelProto) -> Editor:
    """An editor of a copy of a model, with every shape that can be inferred and every node and tensor named.

    Defaults of inputs are set aside: a caller may override them, so neither they nor shapes that follow from them are known.
    """
    if defaults := {tensor.name for tensor in _defaults(model)}:
        kept = [tensor for tensor in model.graph.initializer if tensor.name not in defaults]
        model = deepcopy(model)
        del model.graph.initializer[:], model.graph.value_info[:]
        model.graph.initializer.extend(kept)
    loaded = load(model)
    NameFixPass()(loaded)
    return Editor(ShapeInferencePass()(loaded).model, nominal_shapes(model))


def _finish(model: ir.Model, original: onnx.ModelProto) -> onnx.ModelProto:
    """The edited model as ONNX, with the defaults of the original."""
    finished = ir.to_proto(ShapeInferencePass()(model).model)
    finished.graph.initializer.extend(_defaults(original))
    return finished


def _defaults(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The initialisers that are also inputs."""
    inputs = {value.name for value in model.graph.input}
    return [tensor for tensor in model.graph.initializer if tensor.name in inputs]


def nominal_shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    shapes = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            dims = enumerate(tensor.shape.dim)
            shapes[value.name] = [d.dim_value or (1 if i == 0 else _NOMINAL) for i, d in dims]
    return shapes
