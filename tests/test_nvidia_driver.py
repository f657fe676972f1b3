"""The calls of NVIDIA's driver are well formed: NVIDIA's own package makes them, of a false driver.

``fake_libcuda.c`` stands where the driver would, and says what reaches it by way of
``cuda-bindings``: so every argument has gone through the package's own conversions.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMPILER = shutil.which("cc") or ""

CALLS = """
import torch
from gradstep.backends.cuda.driver import Arguments, DriverError
from gradstep.backends.cuda.nvidia import Nvidia

driver = Nvidia()
assert driver.version() == 13000
image = driver.assemble(0, ".version 7.8")
assert image == b"\\x7fELF of PTX"
try:
    driver.assemble(0, "too new")
except DriverError as error:
    print(error)
function = driver.function(driver.load(0, image), "run")
arguments = Arguments([11, 22, -33])
driver.launch(0, function, 5, 256, 7, arguments)
arguments.values[2] = 44
driver.launch(0, function, 6, 256, 0, arguments)
try:
    driver.launch(0, function, 13, 256, 7, arguments)
except DriverError as error:
    print(error)
host, device = torch.arange(64, dtype=torch.uint8), torch.zeros(64, dtype=torch.uint8)
driver.copy_up(0, device.data_ptr() + 16, host.data_ptr(), 32, 7)
assert device.tolist() == [*[0] * 16, *range(32), *[0] * 16]
event = driver.event(0)
event.record(7)
assert (event.is_done(), event.is_done()) == (False, True)
try:
    driver.load(1, image)
except DriverError as error:
    print(error)
"""

SAID = """\
retain 0
push 0x1000
link 1 gradstep 13 0 .version 7.8
destroy 0x77
pop
push 0x1000
link 1 gradstep 8 0 too new
destroy 0x77
pop
push 0x1000
load ELF of PTX
pop
function run of 0x99
push 0x1000
launch 0x55 5 1 1, 256 1 1, 0 on 0x7: 11 22 -33
pop
push 0x1000
launch 0x55 6 1 1, 256 1 1, 0 on (nil): 11 22 44
pop
push 0x1000
launch 0x55 13 1 1, 256 1 1, 0 on 0x7: 11 22 44
pop
push 0x1000
copy 32 on 0x7
pop
push 0x1000
event 2
pop
push 0x1000
record 0x33 on 0x7
pop
destroyed
"""


@pytest.mark.skipif(
    not COMPILER or importlib.util.find_spec("cuda") is None or sys.platform != "linux",
    reason="needs a C compiler and NVIDIA's cuda-bindings",
)
def test_the_calls_reach_the_driver_as_they_are_meant(tmp_path: Path) -> None:
    source = Path(__file__).parent / "fake_libcuda.c"
    library = tmp_path / "libcuda.so.1"
    command = [COMPILER, "-w", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    done = subprocess.run(
        [sys.executable, "-c", CALLS],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == SAID
    assert done.stdout.splitlines() == [
        "cuLinkAddData: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (an unsupported toolchain); "
        "the driver is older than the code: install a newer one",
        "cuLaunchKernel: CUDA_ERROR_LAUNCH_FAILED (unspecified launch failure)",
        "cuDeviceGet: CUDA_ERROR_INVALID_DEVICE (unspecified launch failure)",
    ]
