"""LBFGS, which is torch's own."""

from __future__ import annotations

import torch


class LBFGS(torch.optim.LBFGS):
    """The quasi-Newton method of torch.optim, as it is there.

    Its work is matrix products and a line search that calls the closure again and again; there is
    no pass over memory to save. So this is torch's class under this package's name, and a
    ``step(closure)`` is torch's to the bit.

    Args: those of torch.optim.LBFGS.

    Paper:
        Liu & Nocedal 1989, "On the limited memory BFGS method for large scale optimization".
    """
