"""Start real processes that form a gloo process group, and hear what became of each.

The processes are forked from a server that has the imports done, so that one costs a fraction of a
second and not four.
"""

from __future__ import annotations

import datetime
import faulthandler
import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from torch_release import IS_LOWEST

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "pytest",
        "torch._dynamo",  # torch.optim imports it when the first optimizer is made
        "torch.distributed.checkpoint.state_dict",
        "torch.distributed.fsdp",
        "torch.distributed.optim",
        "torch.distributed.tensor.debug",
        "torch.nn.parallel",
        "gradstep.cli.audit",
        "gradstep.cli.bench",
        "gradstep.cli.doctor",
        "gradstep.cli.explain",
        "gradstep.cli.rules",
        "gradstep.cli.train",
        "gradstep.cli.update",
        "gradstep.backends.cpu.binding",
        "gradstep.lab.session",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
        "sklearn.datasets",
        "sklearn.model_selection",
    ]
)

#: Seconds until a scenario counts as hanging, and that the others get once one has failed.
TIMEOUT, GRACE = 300.0, 5.0


def run_ranks(
    work: Callable[..., Any],
    count: int,
    *arguments: Any,
    timeout: float = TIMEOUT,
    patience: float = TIMEOUT,
) -> list[Any]:
    """Call ``work(rank, *arguments)`` in ``count`` processes of one group; return their answers.

    Args:
        work: a function on the top floor of a module; what it returns must pickle (NumPy arrays
            rather than tensors, whose memory would go with the process).
        count: of processes.
        arguments: handed to each.
        timeout: seconds after which the processes are killed.
        patience: seconds after which a collective operation gives up by itself.

    Raises:
        AssertionError: a process failed, died or hung. Says of each how it ended: its traceback,
            its exit code, or the place where it stood.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes, answers = [], []
        for rank in range(count):
            answer, end = FORKS.Pipe(duplex=False)
            facts = (rank, count, folder, timeout, patience)
            process = FORKS.Process(
                target=_take_part, args=(end, facts, work, arguments), name=f"rank {rank}"
            )
            process.start()
            end.close()
            processes.append(process)
            answers.append(answer)
        outcomes = _hear(answers, timeout)
        failed = any(kind != "returned" for kind, _ in outcomes.values()) or len(outcomes) < count
        for process in processes:
            process.join(0 if failed else GRACE)
            if process.is_alive():
                process.kill()
                process.join()
        if not failed:
            return [outcomes[rank][1] for rank in range(count)]
        raise AssertionError(
            "\n".join(
                _report(rank, outcomes.get(rank), process.exitcode, Path(folder))
                for rank, process in enumerate(processes)
            )
        )


def _hear(answers: list[Connection], timeout: float) -> dict[int, tuple[str, Any]]:
    """What each process says, until all have spoken or the time is over: rank -> kind, value."""
    outcomes: dict[int, tuple[str, Any]] = {}
    open_ends = {answer: rank for rank, answer in enumerate(answers)}
    # Two seconds more than the processes have, so that they can write where they stand.
    deadline = time.monotonic() + timeout + 2
    while open_ends and (ready := wait([*open_ends], max(0.0, deadline - time.monotonic()))):
        for answer in ready:
            rank = open_ends.pop(answer)
            try:
                outcomes[rank] = answer.recv()
            except EOFError:
                outcomes[rank] = ("died", None)
            if outcomes[rank][0] != "returned":
                deadline = min(deadline, time.monotonic() + GRACE)
    return outcomes


def _report(rank: int, outcome: Any, exit_code: int | None, folder: Path) -> str:
    place = folder / f"place-{rank}"
    stood = place.read_text() if place.exists() else ""
    if outcome is None:
        return f"rank {rank} did not end:\n{stood or 'still running when another failed'}"
    kind, value = outcome
    if kind == "died":
        return f"rank {rank} died with exit code {exit_code}\n{stood}"
    return f"rank {rank} raised:\n{value}" if kind == "raised" else f"rank {rank} went well"


def _take_part(
    end: Connection, facts: tuple[int, int, str, float, float], work: Any, arguments: Any
) -> None:
    rank, count, folder, timeout, patience = facts
    with Path(folder, f"place-{rank}").open("w") as place:
        faulthandler.enable(place)
        faulthandler.dump_traceback_later(timeout, file=place)
        torch.set_num_threads(1)  # the machine's cores are for the processes
        try:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/meeting",
                rank=rank,
                world_size=count,
                timeout=datetime.timedelta(seconds=patience),
            )
            if IS_LOWEST:
                _divide_what_gloo_sums()
            try:
                end.send(("returned", work(rank, *arguments)))
            finally:
                dist.destroy_process_group()
        except BaseException:
            end.send(("raised", traceback.format_exc()))
        finally:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.disable()


def _divide_what_gloo_sums() -> None:
    """In torch 2.7 FSDP asks for the mean of gradients, and gloo, unasked, gives their sum."""
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives as collectives

    def divided_after(scattered: Any, reduced: Any, *_: Any) -> tuple[float, float]:
        return 1.0, float(scattered.size() * (1 if reduced is None else reduced.size()))

    collectives._get_gradient_divide_factors = divided_after  # type: ignore[attr-defined]
