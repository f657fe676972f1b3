"""How the other processes of a run learn from the leading one what to do.

The leader makes or resumes the run, alone with its folder. Then it hands out the settings and the
state from which to go on, which is what a checkpoint holds; so it does not matter how many
processes wrote that checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from gradstep.lab.checkpoint import from_bytes, restore, to_bytes
from gradstep.lab.dataset import Dataset
from gradstep.lab.errors import DataError
from gradstep.lab.processes import Processes
from gradstep.lab.progress import Progress
from gradstep.lab.repeatable import repeatable
from gradstep.lab.run import Run, load_data
from gradstep.lab.session import train_to_the_end
from gradstep.lab.settings import Settings


def hand_out(run: Run, data: Dataset) -> None:
    """Let the followers begin; nothing if there are none."""
    if run.processes.count > 1:
        state = to_bytes(run.training)
        run.processes.told((run.settings.to_json(), data.fingerprint(), state))


def follow(processes: Processes) -> None:
    """Take part in the run that the leader hands out, to its end.

    Raises DataError if this process finds other data than the leader.
    """
    told_settings, fingerprint, state = processes.told()
    settings = Settings.from_json(told_settings)
    with repeatable(settings.threads):
        data = load_data(settings)
        if data.fingerprint() != fingerprint:
            raise DataError(f"the data in {data.name} are not those of the leading process")
        run = Run(Path(), settings, {}, processes)
        restore(from_bytes(state), run.training)
        train_to_the_end(run, data, Progress(), quiet=True)
