"""Initial weights that make an untrained network's map informative.

With PyTorch's default weights the logits of a deep network hardly vary: its map is flat, and parity on a flat map proves
nothing. Here the weights are scaled layer by layer by the statistics of photographs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

RESIDUAL_GAIN = 0.2
"""Scale of each residual block's branch. At 1 a random ResNet of 33 blocks amplifies rounding errors of 1e-6 to 1e-3, which
no trained network does; small gains are usual for initialising residual networks (Goyal et al. 2017 use 0)."""


@torch.no_grad()  # type: ignore[untyped-decorator]
def initialise(network: nn.Module, images: Tensor, seed: int = 0) -> None:
    """Draw weights and scale them, in place, by the statistics of photographs.

    Convolutions are drawn from N(0, 2 / fan_in) (He et al. 2015). One forward pass over `images` then visits the layers in
    the order they run: each convolution is scaled and shifted so that its output, at its first use, has mean 0 and standard
    deviation 1 (layer-sequential unit variance, Mishkin and Matas 2016), and each batch norm takes the mean and variance of
    its input as its running statistics. The network's logits therefore have mean 0 and a spread of about 1.

    Args:
        network: its forward takes `images`.
        images: float32 [N, 3, H, W], normalised photographs.
        seed: for drawing the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    seen: set[nn.Module] = set()

    def standardise(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if module in seen:
            return None
        seen.add(module)
        mean, std = output.mean(), output.std()
        if not std > 0:  # a dead layer stays as drawn
            return None
        module.weight.div_(std)
        if module.bias is None:
            return output / std
        module.bias.sub_(mean).div_(std)
        return (output - mean) / std

    def measure(module: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        module.running_mean.copy_(x.mean((0, 2, 3)))
        # a channel that hardly varies on these photographs must not be amplified without limit on others
        module.running_var.copy_(x.var((0, 2, 3), correction=0).clamp_min(0.1 * x.var(correction=0)))

    hooks = []
    for module in network.modules():
        if isinstance(module, Bottleneck):
            module.bn3.weight.fill_(RESIDUAL_GAIN)
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
            hooks.append(module.register_forward_hook(standardise))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(measure))
    training = network.training
    try:
        network.eval()
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
        network.train(training)
