"""Training in several processes, as torchrun starts them: who they are, and how they work together.

Every process draws the same batches from the same random numbers and learns from its own share of
each; the gradients are added up, so that all take the same step, which is the one that a single
process would take with the whole batch. The first process, of rank 0, leads: it alone reads and
writes the folder of the run, tests the networks and prints. The others follow.

Whatever ends one of them ends all: whoever waits for a process that is gone is told so by gloo.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any

from gradstep.lab.errors import ProcessLost, SettingsError

if TYPE_CHECKING:
    from torch import nn

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

#: How long a process waits for the others: to meet them, and for each one's share of a batch.
_PATIENCE = timedelta(minutes=10)

#: Seconds that the news of an interrupt of all may take from one process to the next.
_GRACE = 0.5

#: Seconds in which gloo's threads let go of the last tensors that were sent, a moment after those
#: who waited for them. These threads outlive their group where DistributedDataParallel was, and one
#: that lets go of a tensor of Python's while Python ends aborts the process ("terminate called
#: without an active exception", seen once on a busy machine).
_LETS_GO = 0.1


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them; by default one that is alone.

    ``rank`` is the place of this one, from 0; ``count`` is how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process reads, writes and prints for all."""
        return self.rank == 0

    def check(self, batch_size: int) -> None:
        """Raise SettingsError if there are more processes than a batch has images."""
        if self.count > batch_size:
            raise SettingsError(
                f"{self.count} processes cannot share batches of {batch_size}, each needs an "
                f"image at least: start at most {batch_size} processes, or raise --batch-size"
            )

    def share(self, size: int) -> slice:
        """The part of a batch of ``size`` images that is this process's; that of the last batch
        of an epoch may be empty."""
        return slice(size * self.rank // self.count, size * (self.rank + 1) // self.count)

    def joined(self, model: nn.Module) -> nn.Module:
        """The model, with its gradients averaged over all processes after each backward pass."""
        if self.count == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model)

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """Each number summed over all processes, which all must ask."""
        if self.count == 1:
            return list(numbers)
        import torch
        import torch.distributed

        sums = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(sums)
        return [float(number) for number in sums]

    def told(self, message: Any = None) -> Any:
        """The leader's message, which the leader gives and every other process receives."""
        if self.count == 1:
            return message
        from torch.distributed import broadcast_object_list

        box = [message]
        broadcast_object_list(box)
        return box[0]


#: A process that is on its own.
ALONE = Processes()


@contextmanager
def together() -> Iterator[Processes]:
    """Within this block the processes that torchrun started are one group; without torchrun, and
    with one process only, there is none to form.

    Raises:
        SettingsError: the environment tells of other processes, but not how to meet them.
        ProcessLost: another process has ended; in whatever this one was then waiting.
    """
    processes = _processes_in(os.environ)
    if processes.count == 1:
        yield processes
        return
    import torch.distributed as dist

    _meet(dist)
    with _stopped_once():
        try:
            yield processes
        except RuntimeError as error:
            if "gloo" not in str(error):
                raise
            # If all were interrupted, this one's interrupt is on its way, and says it better.
            time.sleep(_GRACE)
            raise ProcessLost("another process of this run has ended") from error
        finally:
            dist.destroy_process_group()
            time.sleep(_LETS_GO)


def _processes_in(environment: Any) -> Processes:
    if environment.get("WORLD_SIZE", "1") == "1":
        return ALONE
    missing = [name for name in _VARIABLES if not environment.get(name)]
    if missing:
        raise SettingsError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {' and '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} not set: start it by torchrun, or unset "
            "WORLD_SIZE"
        )
    try:
        rank, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except ValueError:
        rank, count = -1, 0
    if not 0 <= rank < count:
        raise SettingsError(
            f"RANK {environment['RANK']!r} of WORLD_SIZE {environment['WORLD_SIZE']!r} is no "
            "place among processes: start it by torchrun"
        )
    return Processes(rank, count)


def _meet(dist: Any) -> None:
    try:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SettingsError(f"cannot meet the other processes at {where}: {reason}") from error


@contextmanager
def _stopped_once() -> Iterator[None]:
    """Within this block SIGTERM, by which torchrun ends the others when one has failed, stops as
    Ctrl-C does; and what comes after the first of either is ignored.

    Ctrl-C in a terminal reaches every process twice: from the terminal and from torchrun.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        for one in signals:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before: list[Callable[..., Any] | int | None] = [signal.signal(one, stop) for one in signals]
    try:
        yield
    finally:
        for one, handler in zip(signals, before, strict=True):
            if signal.getsignal(one) is stop:
                signal.signal(one, handler)
