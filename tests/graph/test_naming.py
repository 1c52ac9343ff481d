"""The names of nodes are the network's scopes, through tracing, simplification and the rewrites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from r2mrf_deploy import networks
from r2mrf_deploy.graph import naming
from r2mrf_deploy.graph.trace import trace
from r2mrf_deploy.networks.base import IMAGENET
from r2mrf_deploy.networks.deployed import Deployed
from r2mrf_deploy.networks.r2mrf import R2MRF, R2MRFConfig
from tests.conftest import SMALL

pytestmark = pytest.mark.artifact

STEPS = {f"step{t}.branch{b}" for t in (1, 2, 3, 4) for b in range(1, 6)}


def scopes(model: onnx.ModelProto) -> Counter[str]:
    return Counter(naming.scope(node.name) for node in model.graph.node)


@pytest.mark.parametrize("share", [True, False])
def test_every_node_of_a_traced_network_has_a_word(export: Callable[..., Path], share: bool) -> None:
    if share:
        model = onnx.load(export(steps=4, optimize=False))
    else:
        network = networks.create(*networks.preset("r2mrf-edge", SMALL | {"share": "false", "steps": "4"}))
        model = trace(Deployed(network, IMAGENET), (64, 64))
    found = scopes(model)
    assert STEPS <= set(found) <= STEPS | {"input", "backbone", "amdf", "initial", "fusion", "output"}
    # an RRM has 5 convolutions, 4 activations, 2 concatenations; before it comes one more, after it the sum of Eq. 4
    for step in STEPS - {"step1.branch5"}:
        own = [n for n in model.graph.node if naming.scope(n.name) == step]
        assert Counter(n.op_type for n in own)["Conv"] == 5
        assert ("Add" in {n.op_type for n in own}) == (not step.startswith("step1"))
    assert "step2.branch3/second5/Conv" in {n.name for n in model.graph.node}
    assert len({n.name for n in model.graph.node}) == len(model.graph.node)


def test_rewrites_keep_the_words_and_name_what_is_shared(exported: Path) -> None:
    model = onnx.load(exported)
    found = scopes(model)
    assert not found["other"] and found["shared"]
    shared = [n for n in model.graph.node if naming.scope(n.name) == naming.SHARED]
    assert any(n.op_type == "Conv" for n in shared)
    assert len({n.name for n in model.graph.node}) == len(model.graph.node)


def test_names_reveal_no_file_of_this_machine(exported: Path) -> None:
    model = onnx.load(exported)
    assert not any(n.metadata_props or n.doc_string for n in model.graph.node)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("step3.branch5/second5/Conv", "step3.branch5"),
        ("step3.branch5/second5/Conv/out_nchwc", "step3.branch5"),
        ("Reformatting CopyNode + amdf/Conv + amdf/Relu", "amdf"),
        ("/layer1/conv/Conv", "layer1"),
        ("ReorderOutput_token_430", "other"),
        ("", "other"),
    ],
)
def test_a_layers_word(layer: str, said: str) -> None:
    assert naming.scope(layer) == said


def test_what_several_words_share() -> None:
    assert naming.common(["a/x/Conv", "a/y/Conv"]) == "a/x/Conv"
    assert naming.common(["a/x/Conv", "b/x/Conv"]) == "shared/x/Conv"
    assert naming.common(["conv1", "conv2"]) == "conv1"


@pytest.mark.parametrize("share", [True, False])
def test_a_step_s_word_is_its_rrm(share: bool) -> None:
    config = R2MRFConfig(
        **{**vars(R2MRF.presets["r2mrf-edge"]), "share": share, "steps": 3, "width": 1, "amdf_channels": 1}
    )
    network = R2MRF(config)
    paths = {id(module): path for path, module in network.named_modules()}
    calls: Counter[str] = Counter()
    for t in (1, 2, 3):
        for branch in range(5, 0, -1):
            path = paths[id(network.rrm(t, branch))]
            assert network.scope(path, calls[path]) == f"step{t}.branch{branch}"
            calls[path] += 1
