"""A small residual network for images: ``gradstep compare --model gradstep.lab.resnet:ResNet``."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional


class ResNet(nn.Module):
    """A ResNet of He et al. 2015 (arXiv:1512.03385), section 4.2, with one block a stage.

    Images ``(n, 1, 32, 32)`` come in at 16 × 16; three stages of 16, 32 and 64 channels, the
    second and third at half the size of the one before. Returns ten scores an image. 77,754
    weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.stages = nn.Sequential(_Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.stem_norm(self.stem(images)))
        return cast(Tensor, self.head(self.stages(x).mean((2, 3))))


class _Block(nn.Module):
    """Two convolutions, and a way around them."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or before != channels:
            convolution = nn.Conv2d(before, channels, 1, stride=stride, bias=False)
            self.around = nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        inside = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(inside)) + self.around(x))
