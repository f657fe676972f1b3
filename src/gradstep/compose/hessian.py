"""Estimates of the Hessian's diagonal, for :class:`gradstep.Sophia`."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gradstep.backends.update import in_pairs


def hutchinson(
    loss: Tensor, parameters: Iterable[Tensor], generator: torch.Generator | None = None
) -> list[Tensor]:
    """Estimate the diagonal of the loss's Hessian: z · (H z), with signs z drawn at random.

    Its mean over z is the diagonal; of one draw every element is off by what stands beside it in
    its row. For Sophia-H::

        optimizer.update_hessian(gradstep.hutchinson(loss_of_a_batch(), model.parameters()))

    The gradients in ``.grad`` stay as they are. With several processes, take the mean of their
    estimates (``torch.distributed.all_reduce``) before it is used.

    Args:
        loss: of one element, with its graph, which is used up. Every operation in it must have a
            second derivative.
        parameters: by which it is differentiated, in the order in which the optimizer has them.
        generator: of the signs. Default: one for all calls in this process, which torch.manual_seed
            leaves alone and no checkpoint holds; give your own, and save its state, for a training
            that is to be resumed to the same bits.

    Returns:
        a tensor for each parameter, in their order; zeros where the loss is linear in one or does
        not depend on it.

    Raises:
        TypeError: parameters that are no tensors.
        ValueError: a loss of several elements, or one without a graph.

    Paper: Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix"; Liu et
    al. 2023, arXiv:2305.14342, algorithm 1 (with normal z there).
    """
    params = list(parameters)
    for p in params:
        if not isinstance(p, Tensor):
            raise TypeError(
                f"hutchinson() takes parameters; got a {type(p).__name__}. Give model.parameters()"
            )
    if loss.numel() != 1:
        raise ValueError(
            f"hutchinson() takes a loss of one element; got shape {tuple(loss.shape)}. Take its "
            "mean or sum"
        )
    if not loss.requires_grad:
        raise ValueError(
            "hutchinson() needs the graph of the loss, and this one has none. Work it out with "
            "gradients enabled, and give it without detach() or item()"
        )
    signs = [_signs(p, generator) for p in params]
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss.sum(), params, create_graph=True, allow_unused=True)
        pairs = [(g, z) for g, z in zip(gradients, signs, strict=True) if g is not None]
        products = [(in_pairs(g) * in_pairs(z)).sum() for g, z in pairs]
        curved = [x for x in products if x.requires_grad]
    found: tuple[Tensor | None, ...] = (None,) * len(params)
    if curved:
        found = torch.autograd.grad(curved, params, allow_unused=True)
    return [
        torch.zeros_like(p, requires_grad=False) if h is None else _product(h.detach(), z)
        for p, h, z in zip(params, found, signs, strict=True)
    ]


def sampled_loss(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The cross entropy against labels that are drawn from the model's own answer.

    The squares of its gradients, times the number of samples, are the Gauss–Newton–Bartlett
    estimate of the Hessian's diagonal, which is never negative. For Sophia-G::

        logits = model(images)
        gradstep.sampled_loss(logits).backward()
        optimizer.update_hessian(batch_size=len(logits))
        optimizer.zero_grad()

    Args:
        logits: with the classes in the last dimension and samples in all others. Leave out samples
            that do not count, such as padding.
        generator: of the labels, on the device of the logits. Default: one for all calls in this
            process, which torch.manual_seed leaves alone and no checkpoint holds; give your own,
            and save its state, for a training that is to be resumed to the same bits. Several
            processes must draw different labels, as they do by default.

    Returns:
        the mean over all samples.

    Raises:
        ValueError: logits without a dimension of classes, or without samples.

    Paper: Liu et al. 2023, arXiv:2305.14342, algorithm 2.
    """
    if logits.dim() < 2 or not logits.numel():
        raise ValueError(
            f"sampled_loss() takes logits of shape (samples, classes); got {tuple(logits.shape)}"
        )
    rows = logits.flatten(0, -2)
    generator = generator or _own_generator(logits.device)
    answers = rows.detach().to(torch.promote_types(rows.dtype, torch.float32)).softmax(-1)
    labels = torch.multinomial(answers, 1, generator=generator).squeeze(-1)
    return cross_entropy(rows, labels)


@functools.cache
def _own_generator(device: torch.device) -> torch.Generator:
    """One a device, another in each process."""
    distributed = torch.distributed
    together = distributed.is_available() and distributed.is_initialized()
    return torch.Generator(device).manual_seed(distributed.get_rank() if together else 0)


def _signs(p: Tensor, generator: torch.Generator | None) -> Tensor:
    """−1 and 1 at random, of a parameter's shape and dtype; in both parts of a complex one."""
    generator = generator or _own_generator(p.device)
    shape = (*p.shape, 2) if p.is_complex() else p.shape
    bits = torch.randint(0, 2, shape, generator=generator, device=generator.device)
    signs = (2 * bits - 1).to(p.device, p.real.dtype)
    return torch.view_as_complex(signs) if p.is_complex() else signs


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Element by element; of complex tensors, part by part."""
    product = in_pairs(x) * in_pairs(y)
    return torch.view_as_complex(product) if x.is_complex() else product
