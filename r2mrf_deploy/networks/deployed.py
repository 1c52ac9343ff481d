"""The network as it is deployed: from a camera's bytes, or a normalised tensor, to the map.

The exported graph and the PyTorch reference are both this module, so they cannot disagree about preprocessing.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from r2mrf_deploy.manifest import Preprocess, TensorSpec
from r2mrf_deploy.networks.base import Detector

Io = Literal["image", "tensor"]
"""The name of the input, which says what it holds: see `Deployed`."""


class Deployed(nn.Module):
    """`forward`: the input to the outputs, a tuple in the order of `output_names`.

    Input: io "image", `image` uint8 [N, H, W, 3] RGB; io "tensor", `tensor` float32 [N, 3, H, W], already normalised.
    Outputs: `map` float32 [N, 1, H, W] in [0, 1], 1 = in focus; with `logits` also the map before its sigmoid, for parity;
    with `all_steps` also the network's side outputs, logits float32 [N, 1, h, w].

    Raises:
        UsageError: the network cannot run that many `steps`.
    """

    def __init__(
        self,
        network: Detector,
        preprocess: Preprocess,
        *,
        io: Io = "image",
        steps: int | None = None,
        all_steps: bool = False,
        logits: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.io = io
        self.steps = network.check_steps(steps)
        self.all_steps = all_steps
        self.logits = logits
        mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
        # (x / 255 - mean) / std as one multiplication and one addition
        self.register_buffer("scale", (1 / (255 * std)).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.io == "image":
            # Cast before Transpose: TensorRT refuses to permute uint8.
            x = x.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.shift
        logits, side = self.network(x, steps=self.steps, all_steps=True)
        outputs = [torch.sigmoid(logits)]
        if self.logits:
            outputs.append(logits)
        if self.all_steps:
            outputs.extend(side.values())
        return tuple(outputs)

    @property
    def output_names(self) -> list[str]:
        side = self.network.side_names(self.steps) if self.all_steps else []
        return ["map", *(["logits"] if self.logits else []), *side]

    def example(self, batch: int, height: int, width: int) -> Tensor:
        """Zeros of the input's dtype and shape."""
        dtype = torch.uint8 if self.io == "image" else torch.float32
        return torch.zeros(self.input_shape(batch, height, width), dtype=dtype, device=self.scale.device)

    def input_shape(self, batch: int, height: int, width: int) -> list[int]:
        return [batch, height, width, 3] if self.io == "image" else [batch, 3, height, width]

    def input_spec(self, batch: int | str, height: int | str, width: int | str) -> TensorSpec:
        if self.io == "image":
            return TensorSpec(name="image", dtype="uint8", shape=[batch, height, width, 3], layout="NHWC")
        return TensorSpec(name="tensor", dtype="float32", shape=[batch, 3, height, width], layout="NCHW")
