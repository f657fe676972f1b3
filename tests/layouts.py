"""The ways in which the tests lay a tensor's elements out in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def contiguous(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.contiguous_format)


def channels_last(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.channels_last)


def transposed(values: Tensor) -> Tensor:
    return values.t().contiguous().t()


def permuted(values: Tensor) -> Tensor:
    return values.permute(2, 0, 1).contiguous().permute(1, 2, 0)


def part_of_larger(values: Tensor) -> Tensor:
    buffer = values.new_full((values.numel() + 12,), 77)
    view = buffer[5 : 5 + values.numel()].view(values.shape)
    return view.copy_(values)


def with_gaps(values: Tensor) -> Tensor:
    buffer = values.new_full((*values.shape[:-1], 2 * values.shape[-1]), 77)
    return buffer[..., ::2].copy_(values)


def expanded(values: Tensor) -> Tensor:
    return values[:1].expand(values.shape)
