"""Text to learn from, a character at a time: a file of one's own, or what Python itself ships."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradstep.lab.dataset import Dataset
from gradstep.lab.errors import DataError

#: So many characters the network sees at once, and as many it foretells, each the next one.
LENGTH = 64

#: The text that Python ships: the topics of its ``help()``.
OF_PYTHON = "python"

#: Characters are these of ASCII; all others count as one more, and a line's end as the first.
_FIRST, _LAST = 32, 126
CHARACTERS = _LAST - _FIRST + 3


def load_text(source: str) -> Dataset:
    """Load a text as stretches of :data:`LENGTH` characters, the last tenth for the test.

    ``source`` is a file in UTF-8, or :data:`OF_PYTHON` for the topics of Python's ``help()``.
    Images are int64 of shape ``(n, LENGTH)``, characters as numbers below :data:`CHARACTERS`;
    labels are the character after each, of the same shape.

    Raises DataError if the file cannot be read or has too few characters.
    """
    name, text = _read(source)
    numbers = torch.tensor([_number(character) for character in text], dtype=torch.int64)
    stretches = (len(numbers) - 1) // LENGTH
    if stretches < 10:
        raise DataError(
            f"{name} has {len(numbers)} characters; at least {10 * LENGTH + 1} are needed"
        )
    seen = numbers[: stretches * LENGTH].view(stretches, LENGTH)
    next_ones = numbers[1 : stretches * LENGTH + 1].view(stretches, LENGTH)
    cut = stretches - stretches // 10
    return Dataset(name, seen[:cut], next_ones[:cut], seen[cut:], next_ones[cut:], background=0.0)


def _read(source: str) -> tuple[str, str]:
    if source == OF_PYTHON:
        from pydoc_data.topics import topics

        return "the topics of Python's help()", "".join(topics[key] for key in sorted(topics))
    path = Path(source)
    try:
        return path.name, path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _number(character: str) -> int:
    if character == "\n":
        return 0
    code = ord(character)
    return code - _FIRST + 1 if _FIRST <= code <= _LAST else CHARACTERS - 1


class CharacterTransformer(nn.Module):
    """A transformer in the form of GPT-2, small: two blocks of width 64, four heads.

    Vaswani et al. 2017, arXiv:1706.03762, with the norms in front (Radford et al. 2019). Takes
    int64 ``(n, LENGTH)`` and returns scores ``(n, CHARACTERS, LENGTH)``, as torch's
    ``cross_entropy`` takes them.
    """

    def __init__(self, width: int = 64, blocks: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.characters = nn.Embedding(CHARACTERS, width)
        self.places = nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CHARACTERS)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # What a block adds is scaled down, so that their sum does not grow with them.
                share = (
                    math.sqrt(2 * blocks) if name.endswith(("joined.weight", "down.weight")) else 1
                )
                nn.init.normal_(parameter, std=0.02 / share)

    def forward(self, x: Tensor) -> Tensor:
        known = self.characters(x) + self.places.weight[: x.shape[1]]
        scores: Tensor = self.head(self.norm(self.blocks(known)))
        return scores.transpose(1, 2)


class _Block(nn.Module):
    """Attention to what came before, then two layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.qkv(self.attention_norm(x)).view(n, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.joined(seen.transpose(1, 2).reshape(n, length, width))
        out: Tensor = x + self.down(functional.gelu(self.up(self.mlp_norm(x))))
        return out
