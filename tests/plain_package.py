"""Modules of packages that import much more than what is wanted of them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType


def module_of(package: str, name: str) -> ModuleType:
    """A module of a package, without what the package itself imports.

    Raises:
        ImportError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"No module named {package!r}", name=package)
    if package not in sys.modules:
        bare = ModuleType(package)
        bare.__path__ = list(spec.submodule_search_locations)
        bare.__spec__ = spec
        sys.modules[package] = bare
    return importlib.import_module(f"{package}.{name}")
