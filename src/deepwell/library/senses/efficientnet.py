"""EfficientNet-Lite0 in PyTorch: a small picture classifier that is quick without a GPU.

EfficientNet (Tan and Le 2019, https://arxiv.org/abs/1905.11946) stacks inverted residual blocks: a 1x1 convolution
widens the channels, a depthwise convolution looks around each pixel, another 1x1 narrows them again, and the input is
added where shapes allow. The Lite variant
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite) drops squeeze-and-excitation and
clips with ReLU6, which suits small machines: 4.7 million weights, 0.4 GFLOP a picture.

The published weights came from TensorFlow, whose 'SAME' padding puts the odd pixel of a stride-2 convolution at the
bottom and right; PyTorch's symmetric padding shifts every feature map by half a pixel and costs accuracy quietly. Batch
normalisation is folded into the convolutions when the weights are loaded: fewer passes over memory, same numbers.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepwell.errors import ModelSourceError

FEATURES = 1280
"""Numbers in a picture's feature vector."""

_BATCH_NORM_EPSILON = 1e-3


class Stage(NamedTuple):
    """Blocks that work at one resolution; the first of them takes the stride and the new width."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


LITE0_STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's 'SAME' padding: output size is input size over stride, rounded up."""

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        vertical, horizontal = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:])
        x = F.pad(x, (horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2))
        return F.conv2d(x, self.weight, self.bias, stride, 0, 1, self.groups)


class InvertedResidual(nn.Module):
    """Widen, look around, narrow; add the input where nothing changed shape."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = channels_in * expand
        self.expand = SameConv2d(channels_in, hidden, 1) if expand > 1 else None
        self.depthwise = SameConv2d(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = SameConv2d(hidden, channels_out, 1)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:  # [N, C_in, H, W] -> [N, C_out, H', W']
        wide = F.relu6(self.expand(x)) if self.expand is not None else x
        y: Tensor = self.project(F.relu6(self.depthwise(wide)))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """The whole network, with batch normalisation already folded in."""

    def __init__(self, stages: tuple[Stage, ...] = LITE0_STAGES, *, stem: int = 32, classes: int = 1000) -> None:
        super().__init__()
        self.stem = SameConv2d(3, stem, 3, stride=2)
        blocks, channels = [], stem
        for stage in stages:
            for i in range(stage.repeats):
                stride = stage.stride if i == 0 else 1
                blocks.append(InvertedResidual(channels, stage.channels, stage.kernel, stride, stage.expand))
                channels = stage.channels
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv2d(channels, FEATURES, 1)
        self.classifier = nn.Linear(FEATURES, classes)

    def features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [N, 3, H, W] to pooled features [N, 1280], each at least 0 (they follow a ReLU6)."""
        x = F.relu6(self.stem(pixels))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.head(x)).mean(dim=(2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [N, 3, H, W] to class scores [N, classes] before the softmax."""
        scores: Tensor = self.classifier(self.features(pixels))
        return scores


def fold(checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint in the names of lukemelas/EfficientNet-PyTorch to the names above, normalisation folded in.

    A batch normalisation after a convolution computes ``(conv(x) - mean) / sqrt(var + eps) * weight + bias``, which
    is a convolution with other weights and a bias.
    """
    folded: dict[str, Tensor] = {}

    def put(name: str, conv: str, norm: str) -> None:
        scale = checkpoint[f"{norm}.weight"] / torch.sqrt(checkpoint[f"{norm}.running_var"] + _BATCH_NORM_EPSILON)
        folded[f"{name}.weight"] = checkpoint[f"{conv}.weight"] * scale[:, None, None, None]
        folded[f"{name}.bias"] = checkpoint[f"{norm}.bias"] - checkpoint[f"{norm}.running_mean"] * scale

    put("stem", "_conv_stem", "_bn0")
    for i in range(1 + max(int(key.split(".")[1]) for key in checkpoint if key.startswith("_blocks."))):
        if f"_blocks.{i}._expand_conv.weight" in checkpoint:
            put(f"blocks.{i}.expand", f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0")
        put(f"blocks.{i}.depthwise", f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1")
        put(f"blocks.{i}.project", f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2")
    put("head", "_conv_head", "_bn1")
    folded["classifier.weight"], folded["classifier.bias"] = checkpoint["_fc.weight"], checkpoint["_fc.bias"]
    return folded


def load_network(weights: Path) -> EfficientNetLite:
    """The network in evaluation mode, channels last. Raises ``ModelSourceError`` if the file holds something else."""
    try:
        checkpoint = torch.load(weights, map_location="cpu", weights_only=True)
        folded = fold(checkpoint)
        network = EfficientNetLite(classes=folded["classifier.bias"].shape[0])
        network.load_state_dict(folded)
    except (pickle.UnpicklingError, KeyError, ValueError, RuntimeError, EOFError, OSError) as error:
        raise ModelSourceError(
            f"{weights} does not hold EfficientNet-Lite0 weights ({type(error).__name__})",
            hint="Run: deepwell models verify",
        ) from error
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
