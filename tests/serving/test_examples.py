"""The examples for containers and clusters: linted with what is installed here, and always read by these tests."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from r2mrf_deploy.cli import common
from r2mrf_deploy.cli import main as r2mrf
from r2mrf_deploy.serving import server

yaml = pytest.importorskip("yaml", reason="needs PyYAML")

FOLDER = Path(__file__).parents[2] / "examples" / "serving"
DOCKERFILES = sorted(FOLDER.glob("Dockerfile.*"))
MANIFESTS = sorted(FOLDER.glob("*.yaml"))


def instructions(file: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, with their continued lines joined."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest) for line in text.splitlines() if line.strip() for name, _, rest in [line.partition(" ")]]


def documents() -> list[dict[str, Any]]:
    return [document for file in MANIFESTS for document in yaml.safe_load_all(file.read_text()) if document]


def pods() -> list[dict[str, Any]]:
    """The specs of pods in the manifests."""
    specs = (document.get("spec", {}) for document in documents())
    return [pod for spec in specs if (pod := spec.get("predictor") or spec.get("template", {}).get("spec"))]


def tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def test_there_are_examples() -> None:
    assert [file.name for file in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.gpu"]
    kinds = ["Deployment", "Service", "HorizontalPodAutoscaler", "InferenceService"]
    assert [document["kind"] for document in documents()] == kinds
    assert len(pods()) == 2


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_is_pinned_and_not_roots(file: Path) -> None:
    found = instructions(file)
    names = [name for name, _ in found]
    assert names[0] == "FROM"
    assert re.fullmatch(r"[\w./-]+:\d[\w.-]*", found[0][1]), "the base image has a version"
    users = [user for name, user in found if name == "USER"]
    assert users and users[-1].isdigit() and int(users[-1]) >= 1000  # a number: Kubernetes checks runAsNonRoot by it
    assert "HEALTHCHECK" in names and names[-1] in ("CMD", "ENTRYPOINT")
    (check,) = (rest for name, rest in found if name == "HEALTHCHECK")
    assert "http://127.0.0.1:8000/v2/health/ready" in check
    installs = " ".join(rest for name, rest in found if name == "RUN" and "pip" in rest)
    assert '"numpy==1.' in installs and "file:///src" in installs and "--no-cache-dir" in installs
    for _, sources in (entry for entry in found if entry[0] == "COPY"):
        for source in sources.split()[:-1]:
            assert source == "${REPOSITORY}" or (FOLDER.parents[1] / source).exists()


def test_the_server_for_a_gpu_finds_the_package() -> None:
    """Both `r2mrf serve` and the models that run in Triton's own Python, in the folder into which it was installed."""
    found = instructions(FOLDER / "Dockerfile.gpu")
    variables = dict(pair.split("=", 1) for name, rest in found if name == "ENV" for pair in rest.split())
    assert set(variables) == {"PYTHONPATH", server.PACKAGES} and len(set(variables.values())) == 1
    assert any(f"--target {variables['PYTHONPATH']} " in rest for name, rest in found if name == "RUN")


def test_the_commands_of_the_examples_exist() -> None:
    """Their comments and commands name commands and options of r2mrf that there are."""
    used = re.findall(r"r2mrf (serve(?:-repo)?) ([^\n`]*)", "\n".join(file.read_text() for file in DOCKERFILES))
    for file in DOCKERFILES:
        words = re.findall(r'"([^"]*)"', instructions(file)[-1][1])
        used.append(("serve", " ".join(words[words.index("serve") + 1 :])))
        assert "--host 0.0.0.0 --log -" in used[-1][1]
    assert len(used) >= 3
    for name, arguments in used:
        options = {option for p in common.command([name]).params for option in p.opts}
        assert {word for word in arguments.split() if word.startswith("-") and word not in ("-t", "-")} <= options
    assert r2mrf(["serve", "--help"]) == 0


@pytest.mark.parametrize("number", [0, 1])
def test_a_pod_asks_for_little_and_says_when_it_is_ready(number: int) -> None:
    pod = pods()[number]
    (container,) = pod["containers"]
    assert re.search(r":\d[\w.-]*$", container["image"])
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] >= 1000
    own = container["securityContext"]
    assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True
    assert own["capabilities"]["drop"] == ["ALL"]
    assert pod["automountServiceAccountToken"] is False
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    for kind in ("requests", "limits"):
        assert {"cpu", "memory"} <= set(container["resources"][kind])
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {"shm": "/dev/shm", "tmp": "/tmp"} and {v["name"] for v in pod["volumes"]} == set(mounted)


def test_the_images_of_the_manifests_are_those_of_the_dockerfiles() -> None:
    images = {container["image"].partition("/")[2] for pod in pods() for container in pod["containers"]}
    built = {name for file in DOCKERFILES for name in re.findall(r"-t (\S+) \.", file.read_text())}
    assert images == built


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint(file: Path) -> None:
    done = subprocess.run([tool("hadolint"), file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_yamllint(file: Path) -> None:
    rules = "{extends: default, rules: {line-length: {max: 140}, document-start: disable}}"
    done = subprocess.run([tool("yamllint"), "-d", rules, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_kubernetes_own_schemas() -> None:
    """KServe's InferenceService is not among them."""
    command = [tool("kubernetes-validate"), "--strict", FOLDER / "deployment.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
