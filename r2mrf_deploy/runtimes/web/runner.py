"""ONNX Runtime Web in Chromium, driving a page's own code: on the processor (WebAssembly) and on the GPU (WebGPU).

Arrays go through the page's server as they are. An inference is timed by the clock of the page's worker, around ONNX Runtime
alone: what it takes to bring arrays into the browser and back is no part of a page, whose photographs are there already.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import cache
from typing import Any, ClassVar
from urllib.parse import urlencode

import numpy as np

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, RuntimeUnavailable
from r2mrf_deploy.runtimes.base import Arrays, Availability, OpenOptions, Pending, Runner, Runtime, Timing, now_ms
from r2mrf_deploy.runtimes.web import browser
from r2mrf_deploy.runtimes.web.browser import Browser, BrowserFailed
from r2mrf_deploy.runtimes.web.site import Server
from r2mrf_deploy.wording import count

OPENING, RUNNING = 300.0, 900.0
"""Seconds for a page to open its model, and for one inference. A network of 130 MB takes a minute on one slow core."""

_READY = """async () => {
  if (!window.r2mrf) throw new Error("the page's script did not start");
  return await window.r2mrf.ready;
}"""

_RUN = """async (address) => {
  const message = await (await fetch(address)).arrayBuffer();
  const size = new DataView(message).getUint32(0, true);
  const inputs = {};
  let at = 4 + size;
  for (const { name, dtype, shape, bytes } of JSON.parse(new TextDecoder().decode(new Uint8Array(message, 4, size)))) {
    inputs[name] = { dtype, shape, data: message.slice(at, at + bytes) };
    at += bytes;
  }
  const { outputs, start, end } = await window.r2mrf.run(inputs);
  const named = Object.entries(outputs);
  const about = named.map(([name, { dtype, shape, data }]) => ({ name, dtype, shape, bytes: data.byteLength }));
  const head = new TextEncoder().encode(JSON.stringify(about));
  const length = new DataView(new ArrayBuffer(4));
  length.setUint32(0, head.byteLength, true);
  const body = new Blob([length, head, ...named.map(([, { data }]) => data)]);
  const answer = await fetch(address, { method: "POST", body });
  if (!answer.ok) throw new Error("the outputs were not taken");
  return end - start;
}"""

_ADAPTER = """async () => {
  const found = await navigator.gpu?.requestAdapter();
  if (!found) return null;
  const { vendor, architecture, device, description } = found.info;
  return [description || [vendor, architecture, device].filter(Boolean).join(" "), found.info.isFallbackAdapter];
}"""


class Web(Runtime):
    """WebAssembly, in the threads that a page would use. FP16 is computed in FP32."""

    name = "web"
    title = "ONNX Runtime Web"
    suffixes = (".html",)
    supported_options = frozenset({"threads"})
    unsupported_precisions = frozenset({"bf16"})
    provider: ClassVar[str] = "wasm"
    arguments: ClassVar[tuple[str, ...]] = ()
    """What Chromium is started with."""

    def availability(self) -> Availability:
        reason, cure = browser.missing()
        chromium = browser.program()
        if reason or chromium is None:
            return Availability(False, reason=reason, cure=cure)
        return Availability(True, browser.version(chromium))

    def _open(self, artifact: Artifact, options: OpenOptions) -> Runner:
        return WebRunner(self, artifact, options)


class WebGPU(Web):
    """WebGPU, where the browser has it. What it has no kernels for runs on the processor."""

    name = "web-webgpu"
    title = "ONNX Runtime Web, WebGPU"
    variant_of = "web"
    provider = "webgpu"
    arguments = browser.WEBGPU

    def availability(self) -> Availability:
        state = super().availability()
        if not state.ok:
            return state
        found = adapter()
        if not found:
            return Availability(False, state.version, "this browser has no WebGPU here", "use the runtime web")
        return Availability(True, state.version, details={"adapter": found})


@cache
def adapter() -> str:
    """The GPU that WebGPU would use, in words; empty if there is none. The browser is asked once."""
    with suppress(RuntimeUnavailable, BrowserFailed), Browser(*browser.WEBGPU) as opened:
        opened.blank()
        if found := opened.call(_ADAPTER, seconds=browser.STARTING):
            name, software = found
            return f"{name}, in software" if software else name
    return ""


class WebRunner(Runner):
    """A page in a browser of its own. Inferences run one after the other."""

    def __init__(self, runtime: Web, artifact: Artifact, options: OpenOptions) -> None:
        contract = artifact.contract
        if contract is None:
            raise ArtifactError(f"{artifact.path} does not say what its inputs are: export it again")
        self.runtime, self._name = runtime.name, artifact.path
        self.inputs, self.outputs = tuple(contract.inputs), tuple(contract.outputs)
        self._one = threading.Lock()
        with ExitStack() as stack:
            self._server = stack.enter_context(Server(artifact))
            self._browser = stack.enter_context(Browser(*runtime.arguments))
            query = {"ui": "0", "provider": runtime.provider}
            if options.threads:
                query["threads"] = str(options.threads)
            try:
                self._browser.goto(f"{self._server.address}?{urlencode(query)}", OPENING)
                about = self._browser.call(_READY, seconds=OPENING)
            except BrowserFailed as e:
                raise ArtifactError(f"{self._name} does not run in {self._browser.version}: {e}") from None
            self._refuse_another_provider(runtime, about)
            self._close = stack.pop_all()
        self.device = self._in_words(about)
        if artifact.precision == "fp16" and runtime.provider == "wasm":
            self.emulates = "ONNX Runtime computes FP16 in FP32 on a CPU"

    def _refuse_another_provider(self, runtime: Web, about: Mapping[str, Any]) -> None:
        if about["provider"] != runtime.provider:
            raise RuntimeUnavailable(
                f"{self._name} runs by {about['provider']} in {self._browser.version}, not by {runtime.provider}: "
                "use the runtime web"
            )

    def _in_words(self, about: Mapping[str, Any]) -> str:
        if about["provider"] == "webgpu":
            return f"{self._browser.version}, WebGPU ({adapter()})"
        return f"{self._browser.version}, WebAssembly, {count(int(about['threads']), 'thread')}"

    def _run(self, arrays: Arrays) -> Arrays:
        return self._timed(arrays)[0]

    def _submit(self, arrays: Arrays, transfers: bool) -> Pending:
        done = self._timed(arrays)
        return lambda: done

    def _timed(self, arrays: Arrays) -> tuple[Arrays, Timing]:
        with self._one:
            address = self._server.exchange(_packed(arrays))
            start = now_ms()
            try:
                took = self._browser.call(_RUN, address, seconds=RUNNING)
            except BrowserFailed as e:
                raise ArtifactError(f"{self._name} failed in {self._browser.version}: {e}") from None
            finally:
                message = self._server.exchanged.pop(address)
        outputs = _unpacked(message)
        if missing := [spec.name for spec in self.outputs if spec.name not in outputs]:
            raise ArtifactError(f"{self._name} gave no output {missing[0]!r}: export it again")
        return {spec.name: outputs[spec.name] for spec in self.outputs}, Timing.host(start, start + took)

    def abandon(self) -> None:
        self._browser.abandon()

    def close(self) -> None:
        self._close.close()


def _packed(arrays: Arrays) -> bytes:
    """Arrays as one message: the length of a description in JSON as four bytes, the description, the values."""
    about = [
        {"name": name, "dtype": a.dtype.name, "shape": list(a.shape), "bytes": a.nbytes} for name, a in arrays.items()
    ]
    head = json.dumps(about).encode()
    return b"".join([struct.pack("<I", len(head)), head, *(a.tobytes() for a in arrays.values())])


def _unpacked(message: bytes) -> Arrays:
    (size,) = struct.unpack_from("<I", message)
    found, at = {}, 4 + size
    for part in json.loads(message[4:at]):
        values = np.frombuffer(message, part["dtype"], part["bytes"] // np.dtype(part["dtype"]).itemsize, at)
        found[part["name"]] = values.reshape(part["shape"]).copy()
        at += part["bytes"]
    return found
