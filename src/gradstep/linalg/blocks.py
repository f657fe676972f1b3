"""Weights in blocks, each with matrices of its own, so that no matrix is larger than a block.

A weight whose small dimensions are merged, and whose dimensions are cut into pieces of at most
``block_size``, is a number of smaller weights. Their matrices lie one after the other in a state.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gradstep.linalg.kronecker import packed_length


def merged(shape: Sequence[int], largest: float) -> tuple[int, ...]:
    """A shape with neighbouring dimensions in one, as long as that is no longer than ``largest``.

    Dimensions of 1 go with any other.
    """
    made: list[int] = []
    for d in shape:
        if made and (made[-1] * d <= largest or d == 1 or made[-1] == 1):
            made[-1] *= d
        else:
            made.append(d)
    return tuple(made)


def blocked_length(
    shape: tuple[int, ...], max_size: float, block_size: float, merge_dims: float = 0
) -> tuple[int]:
    """The shape of the state that holds the matrices of all blocks of a weight; never empty."""
    whole = merged(shape, block_size or max_size) if merge_dims else shape
    if not block_size:
        return packed_length(whole, max_size)
    length = sum(packed_length(_sizes(cut), max_size)[0] for cut in _cuts(whole, block_size))
    return (max(1, length),)


def in_blocks(
    function: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    states: Sequence[Tensor],
    max_size: float,
    block_size: float,
    merge_dims: float = 0,
) -> tuple[Tensor, ...]:
    """What a function makes of each block and of its shares of the states, put together.

    Args:
        function: takes a block, (batch, …), and its share of each state, (batch, length), and
            returns the block anew, and shares of states.
        x: (batch, *shape).
        states: (batch, length) each.
        max_size: larger dimensions of a block have no matrix.
        block_size: the longest side of a block; 0 for a weight as one.
        merge_dims: whether small dimensions are merged first.
    """
    if not (block_size or merge_dims):
        return function(x, *states)
    sides = merged(x.shape[1:], block_size or max_size) if merge_dims else x.shape[1:]
    whole = x.reshape(len(x), *sides)
    cuts = list(_cuts(sides, block_size or max(sides)))
    lengths = [packed_length(_sizes(cut), max_size)[0] for cut in cuts]
    places = [(slice(None), *cut) for cut in cuts]
    shares = zip(*(state.split(lengths, dim=1) for state in states), strict=True)
    found = [
        function(whole[place].contiguous(), *share)
        for place, share in zip(places, shares, strict=True)
    ]
    blocks, *rest = zip(*found, strict=True)
    made = torch.empty_like(whole, memory_format=torch.contiguous_format)
    for place, block in zip(places, blocks, strict=True):
        made[place] = block
    return (made.view(x.shape), *(torch.cat(parts, dim=1) for parts in rest))


def _cuts(shape: Sequence[int], size: float) -> Iterator[tuple[slice, ...]]:
    """The places of all blocks, in order."""
    step = int(size)
    pieces = [[slice(i, min(i + step, d)) for i in range(0, d, step)] for d in shape]
    return itertools.product(*pieces)


def _sizes(cut: Sequence[slice]) -> tuple[int, ...]:
    return tuple(piece.stop - piece.start for piece in cut)
