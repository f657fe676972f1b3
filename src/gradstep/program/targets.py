"""Targets: what of the written code hangs on the processor, a row each.

No bit of a result does: every operation is an IEEE operation of any of them, and how sums are laid
out is the same for all.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Target:
    """A family of processors.

    Attributes:
        name: as a triple of LLVM's begins.
        half_feature: the feature with which it converts float16 itself: "" where all do, None where
            none does, and the conversion is written out in integers.
        cache_line: bytes of memory that come at once.
        lines_ahead: cache lines that are asked for behind a line of elements, while it is summed.
        bytes_ahead: how far ahead memory is asked for where it is summed as it is read.
        streaming_bits: how wide the vectors are of a loop that waits for memory, where that is not
            the widest; 0 for what the compiler takes.
        side_by_side: lines of elements that are summed at once, where one or two columns are read:
            a core has more requests on their way where they go to several pages.
        converts_half: whether the processor in hand has ``half_feature``.
        grid: who numbers the blocks and threads that go through a table of tensors: ``"nvvm"`` and
            ``"amdgcn"`` by their registers, ``"loops"`` by loops around the same code, for who has
            no such device; empty where threads take tiles off a counter.
        vector_bytes: bytes that a thread of a grid reads at once.
        global_space, shared_space: LLVM's numbers for the memory of tensors, and for that which the
            threads of a block have together.
    """

    name: str
    half_feature: str | None = None
    cache_line: int = 64
    lines_ahead: int = 32
    bytes_ahead: int = 1 << 14
    streaming_bits: int = 0
    side_by_side: int = 4
    converts_half: bool = False
    grid: str = ""
    vector_bytes: int = 0
    global_space: int = 0
    shared_space: int = 0

    def __str__(self) -> str:
        return " ".join(map(str, (self.name, *self.__dict__.values())))


#: Any processor of which nothing is known.
PLAIN = Target("any")

_TARGETS = {
    target.name: target
    for target in (
        Target("x86_64", half_feature="f16c", streaming_bits=256),
        Target("aarch64", half_feature=""),
        Target(
            "nvptx64", half_feature="", grid="nvvm", vector_bytes=16, global_space=1, shared_space=3
        ),
        Target(
            "amdgcn",
            half_feature="",
            grid="amdgcn",
            vector_bytes=16,
            global_space=1,
            shared_space=3,
        ),
        Target("loops", half_feature=None, grid="loops", vector_bytes=16),
    )
}


def target_named(name: str) -> Target:
    """A target by its name, as its processors have it: ``"nvptx64"``, ``"amdgcn"``, ``"loops"``."""
    return target_for(name, ())


def target_for(triple: str, features: Collection[str]) -> Target:
    """The target of a triple of LLVM's, with those features (``"+f16c"``)."""
    target = _TARGETS.get(triple.partition("-")[0], PLAIN)
    half = target.half_feature
    return replace(target, converts_half=half is not None and (not half or f"+{half}" in features))
