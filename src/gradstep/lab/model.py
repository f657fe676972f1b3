"""A network of the user's own, by its name ``module:function``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gradstep.lab.errors import SettingsError
from gradstep.lab.lenet import LeNet

_LISTED = 5


def seeded_model(name: str | None, seed: int, usual: Callable[[], nn.Module] = LeNet) -> nn.Module:
    """The network with the first weights that ``seed`` gives: the usual, or the one of that name.

    ``name`` is ``module:function`` or ``file.py:function``, seen from the current folder; the
    function (or class) takes no argument. torch's global random numbers are as before afterwards.

    Raises SettingsError if there is none, or if what it returns is no network.
    """
    make = usual if name is None else find_model(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = make()
        except Exception as error:
            raise SettingsError(f"argument --model: {name}() raised {_said(error)}") from error
    if not isinstance(model, nn.Module):
        raise SettingsError(
            f"argument --model: {name}() returned {_kind(model)}; an nn.Module was expected"
        )
    return model


def find_model(name: str) -> Callable[[], Any]:
    """The function of that name. Raises SettingsError if there is none."""
    module_name, colon, attribute = name.rpartition(":")
    if not colon or not module_name or not attribute:
        raise SettingsError(
            f"argument --model: {name!r} is not module:function, such as my_nets:make_net"
        )
    try:
        module = _load(module_name)
    except Exception as error:
        plain = isinstance(error, (ModuleNotFoundError, FileNotFoundError))
        reason = " ".join(str(error).split()) if plain else _said(error)
        raise SettingsError(f"argument --model: cannot import {module_name}: {reason}") from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            own = [
                key
                for key, value in vars(module).items()
                if callable(value) and getattr(value, "__module__", None) == module.__name__
            ]
            there = f"it has {', '.join(own[:_LISTED])}" if own else "it has no function"
            raise SettingsError(f"argument --model: {module_name} has no {attribute!r}; {there}")
        found = getattr(found, part)
    if not callable(found):
        raise SettingsError(
            f"argument --model: {name} is {_kind(found)}; a function that returns an nn.Module "
            "was expected"
        )
    return found


def check_model(
    name: str | None, model: nn.Module, two: Tensor | None = None, scored: Sequence[int] = (2, 10)
) -> None:
    """Raise SettingsError unless the network scores two images, and has weights to train.

    ``two`` are the two images, by default of shape (2, 1, 32, 32); ``scored`` is the shape that
    their scores must have.
    """
    if name is None:
        return
    weights = [p for p in model.parameters() if p.requires_grad]
    if not weights:
        raise SettingsError(f"argument --model: the network of {name} has no weights to train")
    strange = next((p for p in weights if p.device.type != "cpu" or p.is_complex()), None)
    if strange is not None:
        raise SettingsError(
            f"argument --model: the network of {name} has weights of {strange.dtype} on "
            f"{strange.device}; real ones on the CPU were expected"
        )
    two = torch.zeros(2, 1, 32, 32) if two is None else two
    what = "images" if two.is_floating_point() else "stretches of text"
    try:
        with torch.random.fork_rng(devices=[]):
            scores = model(two)
    except Exception as error:
        raise SettingsError(
            f"argument --model: the network of {name} does not take {str(two.dtype)[6:]} {what} of "
            f"shape {tuple(two.shape)}: {_said(error)}"
        ) from error
    if not isinstance(scores, Tensor) or tuple(scores.shape) != tuple(scored):
        found = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else _kind(scores)
        count = "ten" if scored[1] == 10 else scored[1]
        raise SettingsError(
            f"argument --model: the network of {name} gave {found} for two {what}; {count} scores "
            f"for each, shape {tuple(scored)}, were expected"
        )
    if not scores.requires_grad:
        raise SettingsError(
            f"argument --model: the scores of the network of {name} carry no gradient"
        )


def model_fingerprint(model: nn.Module) -> str:
    """A short text that is another one as soon as a weight has another name, shape or value."""
    sha256 = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        plain = tensor.detach().contiguous().flatten().view(torch.uint8)
        sha256.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha256.update(plain.numpy().data)
    return sha256.hexdigest()[:16]


def weight_count(model: nn.Module) -> int:
    """How many numbers the optimizer trains."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _load(name: str) -> ModuleType:
    if name.endswith(".py"):
        path = Path(name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise FileNotFoundError(f"there is no file {path}")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
        return module
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(name)


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _kind(value: object) -> str:
    return f"of type {type(value).__name__}"
