"""A run's state on disk: one file an epoch, each whole or not there.

A checkpoint is a dict that ``torch.load(path, weights_only=True)`` reads:

- ``epoch``: how many epochs are done
- ``models``: for each optimizer's name, the state dict of its network
- ``optimizers``: for each optimizer's name, its own state dict
- ``records``: the lines of ``metrics.jsonl`` up to here
- ``random``: the states of the two generators of random numbers
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gradstep.lab.atomic import write_atomically
from gradstep.lab.errors import CheckpointError
from gradstep.lab.training import Training

FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d{4,})\.pt")


def checkpoint_path(directory: Path, epoch: int) -> Path:
    return directory / f"checkpoint-{epoch:04d}.pt"


def find_checkpoints(directory: Path) -> list[Path]:
    """All checkpoints in the folder, the newest first."""
    found = [(int(m[1]), path) for path in directory.iterdir() if (m := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def save_checkpoint(path: Path, training: Training) -> None:
    """Write the checkpoint of the epoch just done. Raises OSError if the disk does not take it;
    then there is no such file, and those before it are as they were."""
    write_atomically(path, to_bytes(training))


def to_bytes(training: Training) -> bytes:
    """What a checkpoint file holds."""
    content = {
        "format": FORMAT,
        "epoch": training.epoch,
        "models": {learner.name: learner.model.state_dict() for learner in training.learners},
        "optimizers": {
            learner.name: learner.optimizer.state_dict() for learner in training.learners
        },
        "records": training.records,
        "random": {"batches": training.random.get_state(), "torch": torch.get_rng_state()},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> dict[str, Any]:
    """The inverse of :func:`to_bytes`."""
    loaded: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return loaded


def load_checkpoint(path: Path, training: Training) -> None:
    """Put ``training`` where it was when the checkpoint was written.

    Raises CheckpointError if the file cannot be read or belongs to other optimizers;
    ``training`` is then in no defined state.
    """
    content = read_checkpoint(path)
    names = [learner.name for learner in training.learners]
    if list(content["models"]) != names:
        raise CheckpointError(
            f"{path.name} is of {', '.join(content['models'])}, the run of {', '.join(names)}"
        )
    try:
        restore(content, training)
    except Exception as error:
        raise CheckpointError(f"{path.name} does not fit: {_first_line(error)}") from error


def restore(content: Mapping[str, Any], training: Training) -> None:
    """Put ``training`` where it was when this content of a checkpoint was made."""
    for learner in training.learners:
        learner.model.load_state_dict(content["models"][learner.name])
        learner.optimizer.load_state_dict(content["optimizers"][learner.name])
    training.random.set_state(content["random"]["batches"])
    torch.set_rng_state(content["random"]["torch"])
    training.epoch = content["epoch"]
    training.records = content["records"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file. Raises CheckpointError if it is damaged."""
    try:
        content = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds: RuntimeError, UnpicklingError, EOFError
        raise CheckpointError(f"{path.name} is damaged: {_first_line(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path.name} is not a checkpoint of gradstep train")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
