"""What Muon costs when a model's matrices are split among 8 to 1,024 processes: a model of time.

    python examples/scale.py

Counts what gradstep does (owners as it chooses them, parts there and back), and divides by the two
speeds below. These come from a data sheet and not from a measurement: put in your own.
"""

from __future__ import annotations

from math import prod

from gradstep.backends.owners import divide
from gradstep.linalg.newton_schulz import newton_schulz

#: Half of the bfloat16 peak of an H100 SXM (989 TFLOP/s), and its 400 Gb/s of network.
OPERATIONS_A_SECOND, BYTES_A_SECOND = 0.5 * 989e12, 50e9
#: The matrices of a decoder of 7 billion weights: q, k, v, o; gate, up, down; 32 layers.
MATRICES = [*[(4096, 4096)] * 4, *[(11008, 4096)] * 2, (4096, 11008)] * 32
ITERATIONS, BYTES_A_NUMBER = 5, 4


def row(processes: int) -> tuple[float, float, float, float]:
    """Of a step: the busiest process's share of the even one, GB that it sends, seconds of each."""
    work = [ITERATIONS * newton_schulz.work(shape) for shape in MATRICES]
    loads = [0.0] * processes
    owners = divide(work, loads)
    done = [0.0] * processes
    for owner, each in zip(owners, work, strict=True):
        done[owner] += each
    owned = [0.0] * processes
    for owner, shape in zip(owners, MATRICES, strict=True):
        owned[owner] += prod(shape)
    # Of every matrix that others own a process sends its part, and it sends back the others' parts
    # of those that it owns.
    elements, others = sum(map(prod, MATRICES)), (processes - 1) / processes
    sent = max((elements - own) / processes + own * others for own in owned) * BYTES_A_NUMBER
    even = sum(work) / processes
    return max(done) / even, sent / 1e9, max(done) / OPERATIONS_A_SECOND, sent / BYTES_A_SECOND


def table() -> str:
    """The table, in Markdown."""
    total = sum(ITERATIONS * newton_schulz.work(shape) for shape in MATRICES)
    lines = [
        "| processes | busiest / even share | GB sent by it | its work, ms | its sending, ms "
        "| each does all, ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for processes in (8, 32, 128, 256, 1024):
        share, sent, working, sending = row(processes)
        lines.append(
            f"| {processes:,} | {share:.2f} | {sent:.2f} | {1e3 * working:.0f} "
            f"| {1e3 * sending:.0f} | {1e3 * total / OPERATIONS_A_SECOND:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
