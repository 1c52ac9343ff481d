"""The order of the rewrites, their fixpoint, and the record of what they did.

Nothing leaves here unchecked: the outputs of the result have the types, ranks and static dimensions of the model's (see
`interface`). A rewrite that fails or that changes them is left out, and a warning names it. A model that the rewrites cannot
read comes back as it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial

import onnx
from onnx_ir.passes.common import NameFixPass

from r2mrf_deploy.errors import GraphError, first_line
from r2mrf_deploy.graph import interface
from r2mrf_deploy.graph.apart import Weights
from r2mrf_deploy.graph.interface import Inferred
from r2mrf_deploy.graph.nodes import load
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

_LOG = logging.getLogger(__name__)
_MOST_ROUNDS = 20
"""Every rewrite lowers the effort or the number of nodes, so there is a fixpoint; real graphs reach it in two or three."""

_WHOLE = "pipeline: the whole graph: "

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
    warnings: list[str] = field(default_factory=list)
    """Which rewrites were left out because they failed, or why the whole model was left as it is."""


class _Unreadable(GraphError):
    """A valid model that cannot be rewritten, or not without a loss."""


class _Faulty(Exception):
    """A rewrite that failed, or that changed what the model promises."""

    def __init__(self, rewrite: str, why: str) -> None:
        super().__init__(rewrite, why)
        self.rewrite, self.why = rewrite, why


def optimize(model: onnx.ModelProto, *, explain: bool = False) -> Optimized:
    """Rewrite a model without changing its function: exact in real arithmetic; in floats, sums are taken in another order.

    Rewrite the FP32 model before its precision is lowered: in FP16 the order of sums matters more.

    Names, types, shapes and order of inputs and outputs are kept. The result has no more multiply-adds and no higher peak
    of activation memory than the model. The same model always gives the same result, and a result is not changed again.

    Args:
        model: of opset 13 or later, its weights loaded; not changed.
        explain: collect `explanations`.

    Raises:
        GraphError: the model is invalid or too old.
    """
    start = time.perf_counter()
    _check(model)
    weights = Weights()
    try:
        _refuse_loss(model)
        runs = [_optimize(weights.take(model), weights)]
    except _Unreadable as e:
        return Optimized(deepcopy(model), [], warnings=[f"the model is left as it is, because {e}"])
    # what one run folds may let the next infer more shapes; the last finds nothing, and so will a second `optimize`
    while runs[-1].records and len(runs) < _MOST_ROUNDS:
        runs.append(_optimize(runs[-1].model, weights))
    result = runs[-1].model
    weights.put(result)
    _LOG.debug("rewrote the graph in %d rounds and %.3f s", len(runs), time.perf_counter() - start)
    records: dict[str, RewriteRecord] = {}
    for record in (record for run in runs for record in run.records):
        _add(records, record)
    explanations = [
        *(line for run in runs for line in run.explanations if line.startswith(_WHOLE)),
        *runs[-1].explanations,
    ]
    warnings = [line for run in runs for line in run.warnings]
    return Optimized(
        result,
        list(records.values()),
        list(dict.fromkeys(explanations)) if explain else [],
        list(dict.fromkeys(warnings)),
    )


def rewrite_once(model: onnx.ModelProto, rewrite: Rewrite) -> onnx.ModelProto:
    """The model after one pass of one rewrite, which need not be in the pipeline, whatever it costs.

    Raises:
        GraphError: the model cannot be read.
    """
    editor = _editor(model)
    return _finish(editor, model) if rewrite(editor).count else model


def _optimize(model: onnx.ModelProto, weights: Weights) -> Optimized:
    """One run of the pipeline, without the rewrites that turn out to be faulty.

    Args:
        model: without its large weights.
    """
    source, faulty = interface.infer(_without_defaults(model)), dict[str, str]()
    while True:
        try:
            run = _cheapest(model, weights, source, dict.fromkeys(faulty, _nothing))
        except _Faulty as e:
            faulty[e.rewrite] = e.why
        else:
            return replace(run, warnings=[f"{name} is left out, because {why}" for name, why in faulty.items()])


def _cheapest(
    model: onnx.ModelProto, weights: Weights, source: Inferred, without_faulty: dict[str, Rewrite]
) -> Optimized:
    """The first of `_ATTEMPTS` that does not raise the costs.

    Raises:
        _Faulty: a rewrite must be left out.
    """
    explanations: list[str] = []
    for without, rewrites in _ATTEMPTS:
        explanations += [f"{_WHOLE}{without} would raise its peak memory"] if without else []
        editor = _edit(source.model, weights)
        before = editor.cost()
        records, refusals = _to_fixpoint(editor, rewrites | without_faulty)
        after = editor.cost()
        if after.peak_activation_bytes <= before.peak_activation_bytes and after.multiply_adds <= before.multiply_adds:
            if not records:
                return Optimized(deepcopy(model), [], [*explanations, *refusals])
            result = interface.infer(editor.to_proto())
            if why := interface.difference(source, result):
                _to_fixpoint(_edit(source.model, weights), rewrites | without_faulty, source)  # which names the culprit
                raise _Faulty(records[-1].name, why)
            return Optimized(_with_interface(result.model, model), records, [*explanations, *refusals])
    return Optimized(deepcopy(model), [], [*explanations, f"{_WHOLE}so would all other rewrites"])


def _to_fixpoint(
    editor: Editor, rewrites: Mapping[str, Rewrite], source: Inferred | None = None
) -> tuple[list[RewriteRecord], list[str]]:
    """Run rounds until one changes nothing; the refusals are those of that last round.

    Args:
        source: compare its outputs with the graph's after every change.

    Raises:
        _Faulty: a rewrite fails or, if there is a `source`, changes its outputs.
    """
    records: dict[str, RewriteRecord] = {}
    refusals: dict[str, None] = {}
    before = editor.multiply_adds()
    for _ in range(_MOST_ROUNDS):
        changed = False
        refusals.clear()
        for name in _ROUND:
            try:
                outcome = rewrites[name](editor)
            except Exception as e:  # a graph that it was not made for: better without it than without all the others
                raise _Faulty(name, f"it failed with {type(e).__name__}: {first_line(e)}") from e
            refusals.update((f"{name}: {refusal}", None) for refusal in outcome.refusals)
            if outcome.count:
                changed = True
                after = editor.multiply_adds()
                _add(
                    records,
                    RewriteRecord(
                        name=name, count=outcome.count, multiply_adds_before=before, multiply_adds_after=after
                    ),
                )
                if source and (why := interface.difference(source, interface.infer(editor.to_proto()))):
                    raise _Faulty(name, why)
                before = after
        if not changed:
            break
    return list(records.values()), list(refusals)


def _add(records: dict[str, RewriteRecord], new: RewriteRecord) -> None:
    """Count a pass of a rewrite to those before; what others did in between is not counted to it."""
    old = records.get(new.name)
    if old is not None:
        after = old.multiply_adds_after + new.multiply_adds_after - new.multiply_adds_before
        new = old.model_copy(update={"count": old.count + new.count, "multiply_adds_after": after})
    records[new.name] = new


def _check(model: onnx.ModelProto) -> None:
    opset = _opset(model)
    if opset is not None and opset < 13:
        raise GraphError(f"opset {opset} is too old for the rewrites: convert the model to opset 13 or later")
    if model.ir_version < 4:
        raise GraphError(
            f"in IR version {model.ir_version} every weight is an input: save the model again with a recent version of onnx"
        )
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise GraphError("the model's weights are not loaded: load its external data first")
    if fault := interface.fault(model):
        raise GraphError(f"not a valid ONNX model: {fault}")


def _opset(model: onnx.ModelProto) -> int | None:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)


def _refuse_loss(model: onnx.ModelProto) -> None:
    if _opset(model) is None:
        raise _Unreadable("it has no standard operators")
    if model.training_info:
        raise _Unreadable("it has a training graph")
    if model.graph.quantization_annotation:
        raise _Unreadable("it has quantization annotations for tensors that a rewrite would replace: rewrite it before")
    if model.graph.sparse_initializer:
        raise _Unreadable("it has sparse weights: make them dense")


def _editor(model: onnx.ModelProto) -> Editor:
    """An editor of a copy of a model, with every shape that can be inferred and every node and tensor named."""
    weights = Weights()
    return _edit(interface.infer(_without_defaults(weights.take(model))).model, weights)


def _edit(model: onnx.ModelProto, weights: Weights) -> Editor:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # naming a tensor writes the name into the model that holds it
    try:
        loaded = load(copy)
        NameFixPass()(loaded)
        return Editor(loaded, nominal_shapes(model), weights)
    except Exception as e:  # onnx_ir does not know all that is valid, and raises many types
        raise _Unreadable(first_line(e)) from None


def _without_defaults(model: onnx.ModelProto) -> onnx.ModelProto:
    """Defaults of inputs are set aside: a caller may override them, so neither they nor shapes that follow from them are
    known."""
    if not _defaults(model):
        return model
    inputs = {value.name for value in model.graph.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in inputs]
    bare = deepcopy(model)
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(kept)
    return bare


def _finish(editor: Editor, original: onnx.ModelProto) -> onnx.ModelProto:
    result = _with_interface(interface.infer(editor.to_proto()).model, original)
    editor.weights.put(result)
    return result


def _with_interface(model: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """An edited model with the inputs, their defaults and the outputs of the original."""
    interface.keep(model, original)
    model.graph.initializer.extend(_defaults(original))
    return model


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
