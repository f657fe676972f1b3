"""The GPU that a command is to run on, and what a report says of it."""

from __future__ import annotations

import torch

import gradstep
from gradstep.lab.errors import DeviceError


def gpu(name: str) -> torch.device:
    """The GPU of that name, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        DeviceError: it is none, or not here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type != "cuda":
        raise DeviceError(f"{name!r} is no GPU of NVIDIA's: say cuda, or cuda:1 for the second")
    if torch.version.cuda is None:
        raise DeviceError(
            f"torch {torch.__version__} was built without CUDA, so there is no {name}"
        )
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise DeviceError(
            f"there is no {name}: torch finds {count or 'no'} GPU{'s' * (count != 1)}"
        )
    return torch.device("cuda", device.index or 0)


def described(device: torch.device) -> str:
    """Device, driver and versions, on one line."""
    from gradstep.backends.cuda.driver import Unavailable
    from gradstep.backends.cuda.nvidia import Nvidia

    found = torch.cuda.get_device_properties(device)
    try:
        version = Nvidia().version()
        driver = f"CUDA {version // 1000}.{version % 1000 // 10}"
    except Unavailable as error:
        driver = str(error)
    return (
        f"{found.name}, compute capability {found.major}.{found.minor}, driver of {driver}, "
        f"torch {torch.__version__}, gradstep {gradstep.__version__}"
    )
