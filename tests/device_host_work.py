"""What the host does in a step of weights on a GPU, timed with a driver that does nothing.

``python tests/device_host_work.py`` prints microseconds a step and a tensor, for the note in
``docs/devices.md``. The real driver's own calls, a launch and a copy, come on top.
"""

from __future__ import annotations

import time
from typing import Any

import torch

import gradstep
from device_drivers import Emulating
from gradstep.backends import register
from gradstep.backends.cuda import Cuda


class Idle(Emulating):
    """Does as it is told until it is idle; then it only counts, in next to no time."""

    count = 0

    def launch(self, *asked: Any) -> None:
        if self.idle:
            self.count += 1
        else:
            super().launch(*asked)

    def copy_up(self, *asked: Any) -> None:
        if self.idle:
            self.count += 1
        else:
            super().copy_up(*asked)


#: Tensors of two groups, between which what a tensor costs is told from what a step costs.
FEW, MANY = 1, 101


def seconds(make: Any, engine: str, tensors: int, rounds: int = 3000) -> float:
    """CPU time of a step, with the same gradients each time: a tenth of the steps take less."""
    params = [torch.nn.Parameter(torch.ones(8)) for _ in range(tensors)]
    for p in params:
        p.grad = torch.ones(8)
    optimizer = make(params, lr=1e-3, engine=engine)
    optimizer.step()
    times = []
    for _ in range(rounds):
        begin = time.thread_time()
        optimizer.step()
        times.append(time.thread_time() - begin)
    return sorted(times)[rounds // 10]


def main() -> None:
    torch.set_num_threads(1)
    driver = Idle()
    register(Cuda(driver, "counted"))
    for make in (gradstep.SGD, gradstep.Lion, gradstep.Adam, gradstep.RAdam):
        seconds(make, "counted", 1, 1)  # the kernel is loaded and proved
        driver.idle = True
        few, many = (seconds(make, "counted", n) * 1e6 for n in (FEW, MANY))
        driver.idle = False
        each = (many - few) / (MANY - FEW)
        print(
            f"{make.__name__:<6} {few - FEW * each:5.1f} µs a step and {each:.2f} µs a tensor "
            f"(one tensor {few:.1f} µs, {MANY} tensors {many:.1f} µs)"
        )


if __name__ == "__main__":
    main()
