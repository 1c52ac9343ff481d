"""The order of the rewrites, their fixpoint, and the account of what they did."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, ShapeInferencePass

from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.graph.cost import GraphCost, Shapes, load
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


def _nothing(editor: Editor) -> Outcome:
    return Outcome()


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
"""One round. What is equal is shared before it is folded, because folding tells equal convolutions apart; splitting comes
after the folds, so that it sees final weights, and right before the rewrites that it is done for."""

_WITHOUT_MERGING = REWRITES | {"split concat": partial(split_concat, merging=False), "merge parallel": _nothing}
_WITHOUT_SHARING = _WITHOUT_MERGING | {"split concat": _nothing, "cse": _nothing}
_ATTEMPTS = (("", REWRITES), ("merging", _WITHOUT_MERGING), ("sharing", _WITHOUT_SHARING))
"""The rewrites to try, the first set that does not raise the peak memory, and what each set does without. Merged outputs
are all alive at once, and a shared one lives until its last reader."""

_MOST_ROUNDS = 20
"""Every rewrite lowers the effort or the number of nodes, so a fixpoint exists; real graphs reach it in two or three."""

_NOMINAL = 320
"""What a free dimension counts as when costs are compared."""


@dataclass(frozen=True)
class Optimized:
    """A rewritten model and the account of it."""

    model: onnx.ModelProto
    records: list[RewriteRecord]
    """One for each rewrite that did something, in the order in which they first did; multiply-adds are those of the whole
    graph, with free dimensions at a nominal size (batch 1, otherwise 320)."""
    explanations: list[str] = field(default_factory=list)
    """Why a rewrite left alone what it nearly changed: "rewrite: where: why"."""


def optimize(model: onnx.ModelProto, *, explain: bool = False) -> Optimized:
    """Rewrite a model without changing its function: exact in real arithmetic, up to the order of sums in floats.

    Meant for FP32, before a precision is lowered: in FP16 the order of sums is not so small a matter.

    Names, types, shapes and order of inputs and outputs are kept. The result has no more multiply-adds and no higher peak
    of activation memory than the model. The same model gives the same result, and the result gives itself.

    Args:
        model: of opset 13 or later, its weights loaded; not changed.
        explain: collect `explanations`.

    Raises:
        GraphError: the model is invalid, too old, or holds what these rewrites cannot read.
    """
    _check(model)
    before = Editor(_prepare(model), _nominal_shapes(model)).cost()
    given_up: list[str] = []
    for without, rewrites in _ATTEMPTS:
        given_up += [f"pipeline: the whole graph: {without} would raise its peak memory"] if without else []
        editor = Editor(_prepare(model), _nominal_shapes(model))
        records, refusals = _to_fixpoint(editor, rewrites)
        if not _dearer(editor.cost(), before):
            result = _finish(editor.model, model) if records else deepcopy(model)
            return Optimized(result, records, [*given_up, *refusals] if explain else [])
    return Optimized(
        deepcopy(model), [], [*given_up, "pipeline: the whole graph: so would all else"] if explain else []
    )


def rewrite_once(model: onnx.ModelProto, rewrite: Rewrite) -> onnx.ModelProto:
    """The model after one pass of one rewrite, in the pipeline or not, whatever it costs.

    Raises:
        GraphError: the model is invalid.
    """
    editor = Editor(_prepare(model), _nominal_shapes(model))
    return _finish(editor.model, model) if rewrite(editor).count else model


def _dearer(after: GraphCost, before: GraphCost) -> bool:
    return after.multiply_adds > before.multiply_adds or after.peak_activation_bytes > before.peak_activation_bytes


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
                saved = before - editor.cost().multiply_adds
                records[name] = _updated(records.get(name), name, outcome.count, before, saved)
        if not changed:
            break
    return list(records.values()), list(refusals)


def _updated(record: RewriteRecord | None, name: str, count: int, before: int, saved: int) -> RewriteRecord:
    """The account of a rewrite after one more pass. What other rewrites did between its passes is not counted to it."""
    if record is None:
        return RewriteRecord(name=name, count=count, multiply_adds_before=before, multiply_adds_after=before - saved)
    return record.model_copy(
        update={"count": record.count + count, "multiply_adds_after": record.multiply_adds_after - saved}
    )


def _check(model: onnx.ModelProto) -> None:
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < 13:
        raise GraphError(f"opset {opset} is too old to rewrite: convert the model to opset 13 or later")
    if model.ir_version < 4:
        raise GraphError(
            f"IR version {model.ir_version} has no constants, only defaults of inputs: save the model again"
        )
    if model.graph.sparse_initializer:
        raise GraphError("the model has sparse weights, which the rewrites cannot read: make them dense")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise GraphError("the model's weights are not loaded: load its external data first")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as e:
        raise GraphError(f"not a valid ONNX model: {' '.join(str(e).split())}") from None
    except ValueError:  # over 2 GB, which the checker cannot take; an invalid model then fails later
        pass


def _prepare(model: onnx.ModelProto) -> ir.Model:
    """A model to work on, with every shape that can be inferred and every node and tensor named.

    Defaults of inputs are set aside: a caller may override them, so neither they nor shapes that follow from them are
    known.
    """
    if _defaults(model):
        bare = deepcopy(model)
        del bare.graph.initializer[:], bare.graph.value_info[:]
        inputs = {value.name for value in model.graph.input}
        bare.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in inputs)
        model = bare
    loaded = load(model)
    NameFixPass()(loaded)
    return ShapeInferencePass()(loaded).model


def _finish(model: ir.Model, original: onnx.ModelProto) -> onnx.ModelProto:
    """The file's form of a model that was prepared, with the defaults that the original has."""
    finished = ir.to_proto(ShapeInferencePass()(model).model)
    finished.graph.initializer.extend(_defaults(original))
    return finished


def _defaults(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The initialisers that are inputs too."""
    inputs = {value.name for value in model.graph.input}
    return [tensor for tensor in model.graph.initializer if tensor.name in inputs]


def _nominal_shapes(model: onnx.ModelProto) -> Shapes:
    shapes = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            dims = enumerate(tensor.shape.dim)
            shapes[value.name] = [d.dim_value or (1 if i == 0 else _NOMINAL) for i, d in dims]
    return shapes
