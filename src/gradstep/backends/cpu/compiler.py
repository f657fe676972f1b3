"""Compile LLVM code for this machine's CPU, or take it from the cache, and make it callable.

LLVM comes with numba, as llvmlite. ``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` choose another CPU
to compile for, as they do in numba. Nothing here allows LLVM to change a result: no fast-math and
no contraction.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from gradstep.backends import kernel_cache
from gradstep.program.targets import Target, target_for

_lock = threading.RLock()
_functions: dict[str, dict[str, Any]] = {}
_session: dict[str, Any] = {}


if hasattr(os, "register_at_fork"):
    # Every call of LLVM is under this lock, and a fork waits for it: else the child would find
    # LLVM's own locks taken by a thread that it does not have.
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


def cpu() -> tuple[str, str]:
    """Name and features of the CPU that kernels are compiled for."""
    name = os.environ.get("NUMBA_CPU_NAME")
    features = os.environ.get("NUMBA_CPU_FEATURES")
    with _lock:
        if features is None:
            features = "" if name is not None else llvm.get_host_cpu_features().flatten()
        return name or llvm.get_host_cpu_name(), features


def target() -> Target:
    """What is known of the CPU that kernels are compiled for."""
    with _lock:
        return target_for(llvm.get_default_triple(), cpu()[1].split(","))


def _sources() -> str:
    """A digest of the files that write code; empty where they cannot be read, as in a zip file."""
    try:
        package = Path(__file__).parents[2]
        folders = ("program", "backends/llvm", "backends/cpu", "backends/cuda")
        files = sorted(file for folder in folders for file in (package / folder).glob("*.py"))
        texts = [f"{file.name}\n{file.read_text('utf-8')}" for file in files]
    except OSError:
        return ""
    return kernel_cache.digest(*texts) if texts else ""


#: A digest of what writes code, taken when this file is loaded: what is edited later does not run.
WRITERS = _sources()


def functions(
    spec: str, write: Callable[[], str], signatures: Mapping[str, tuple[int, bool]]
) -> dict[str, Any]:
    """The machine code of functions, ready to be called with 64-bit integers.

    A call lets go of Python's global lock.

    Args:
        spec: all that shapes the code, as text.
        write: returns the code, a module of LLVM's intermediate language which defines them; called
            only where it lies compiled neither in this process nor on disk.
        signatures: name -> how many 64-bit integers it takes, and whether it returns one.
    """
    if not WRITERS:
        # Another version might write other code for the same spec: the code is the name.
        spec = write()
    with _lock:
        key = _key(spec, *cpu())
        known = _functions.get(key)
        if known is None:
            library = _load(key, write, signatures)
            known = {}
            for name, (arguments, returns) in signatures.items():
                result = ctypes.c_int64 if returns else None
                kind = ctypes.CFUNCTYPE(result, *[ctypes.c_int64] * arguments)
                known[name] = kind(library[name])
            _functions[key] = known
    return known


def llvm_version() -> str:
    """Of the compiler: llvmlite's and LLVM's own."""
    return ".".join(map(str, (llvmlite.__version__, *llvm.llvm_version_info)))


def _key(spec: str, cpu_name: str, features: str) -> str:
    return kernel_cache.digest(
        spec,
        WRITERS,
        llvm.get_default_triple(),
        cpu_name,
        features,
        llvm_version(),
    )


def _load(key: str, write: Callable[[], str], symbols: Iterable[str]) -> Any:
    """The library of a module, from the cache or compiled."""
    image = kernel_cache.read(key)
    if image is not None:
        try:
            return _link(image, key, symbols)
        except RuntimeError:  # whole, but not what this machine can load
            pass
    image = _compile(write(), *cpu())
    library = _link(image, key + "'", symbols)
    kernel_cache.write(key, image)
    return library


def assembly(code: str, machine: Any = None) -> str:
    """The assembly text of a module as compiled for :func:`cpu`, or for a machine of LLVM's."""
    with _lock:
        machine = machine or _machine(*cpu())
        return str(machine.emit_assembly(_optimised(code, machine)))


def _machine(cpu_name: str, features: str) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=cpu_name, features=features, opt=3, reloc="pic", codemodel="jitdefault", jit=True
    )


def _optimised(code: str, machine: Any) -> Any:
    module = llvm.parse_assembly(code)
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    options.loop_interleaving = True
    options.loop_unrolling = True
    llvm.create_pass_builder(machine, options).getModulePassManager().run(
        module, llvm.create_pass_builder(machine, options)
    )
    return module


def _compile(code: str, cpu_name: str, features: str) -> bytes:
    machine = _machine(cpu_name, features)
    return bytes(machine.emit_object(_optimised(code, machine)))


def _link(image: bytes, name: str, symbols: Iterable[str]) -> Any:
    if "jit" not in _session:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        _session["jit"] = llvm.create_lljit_compiler()
        _session["libraries"] = []
    builder = llvm.JITLibraryBuilder().add_object_img(image).add_current_process()
    for symbol in symbols:
        builder.export_symbol(symbol)
    library = builder.link(_session["jit"], name)
    _session["libraries"].append(library)  # the code lives as long as the process
    return library
