"""What cannot make a step weight by weight, each by its own gradient: refused, by name."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gradstep.backends.eligibility import sharing, spans_of
from gradstep.backends.update import has_shape
from gradstep.compose.wrapper import Wrapper, _inside, rules_inside, way_to_ours
from gradstep.optimizer.optimizer import Optimizer, planner_of
from gradstep.optimizer.planning import Planner
from gradstep.program.shards import local


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise for what needs all gradients at once.

    Raises:
        TypeError: an optimizer of torch's.
        ValueError: a wrapper, a rule or an option, by name; or a ``step()`` of a user's own.
    """
    for each in _inside(optimizer):
        if isinstance(each, Wrapper) and each._needs_all_gradients is not None:
            name = type(each).__name__
            raise ValueError(
                f"StepInBackward cannot go around {name}: {each._needs_all_gradients}, and here "
                f"each is freed before the next one comes. Leave {name} or StepInBackward out"
            )
    *_, core = _inside(optimizer)
    try:
        rules = rules_inside(optimizer)
    except TypeError:
        theirs = type(core)
        raise TypeError(
            f"StepInBackward takes an optimizer of gradstep; got {theirs.__module__}."
            f"{theirs.__qualname__}. {way_to_ours(core)}"
        ) from None
    for stepped in (core, *rules):
        kind = next((k for k in type(stepped).__mro__ if "step" in vars(k)), Optimizer)
        if not kind.__module__.startswith("gradstep."):
            raise ValueError(
                f"{kind.__name__} overrides step(), which would run when the weights have moved "
                "already. Give StepInBackward an optimizer without a step() of its own"
            )
    for rule in rules:
        _check_rule(planner_of(rule))


def _check_rule(planner: Planner) -> None:
    """Raise unless each weight can make its step with its own gradient alone."""
    rule = planner.rule
    if any(group.get("differentiable") for group in planner.contents.groups):
        raise ValueError(
            "differentiable=True lets autograd record the step, and within backward() it records "
            "nothing. Leave it out, or leave StepInBackward out"
        )
    if "loss" in rule.inputs:
        raise ValueError(
            f"{rule.name} asks for the loss, which no weight knows within backward(). Take a rule "
            "that goes without, or leave StepInBackward out"
        )
    for _, graph in planner.graphs():
        if not graph.sums_over_all:
            continue
        sums = [node for node in graph.nodes if node.operation == "global_sum"]
        name = graph.stages[sums[0].stage] if sums and graph.stages else rule.name
        within = "" if name == rule.name else f" in {rule.name}"
        way_out = "Take a rule without such a sum"
        if "clip" in name:
            way_out = "Clip each weight by itself, with gradstep.clip_by_norm"
        raise ValueError(
            f"{name}{within} sums over all weights, and here each gradient is freed before the "
            f"next one comes. {way_out}, or leave StepInBackward out"
        )


def check_memory(named: Sequence[tuple[str, Tensor]]) -> None:
    """Raise where two weights share memory: one would move before the other's gradient comes.

    Args:
        named: the weights, with their names.

    Raises:
        ValueError: two that do, named.
    """
    spans = []
    for number, (_, p) in enumerate(named):
        mine = local(p)
        if has_shape(p) and not mine.is_meta:
            spans += spans_of(mine, (), number)
    shared = [named[number][0] for number in sorted(sharing(spans))]
    if shared:
        raise ValueError(
            f"{' and '.join(shared[:2])} share memory: the one would move before the gradient of "
            "the other has come. Make them one parameter, or leave StepInBackward out"
        )


def check_processes(weights: Iterable[Tensor]) -> None:
    """Raise for modules that keep all gradients themselves, and give them back later.

    Raises:
        ValueError: a DistributedDataParallel or FullyShardedDataParallel that has one of the
            weights.
    """
    module = gradients_come_later(weights)
    if module is not None:
        raise ValueError(
            f"StepInBackward cannot step the weights of a {type(module).__name__}, which adds the "
            "gradients of the processes up when backward has left the weight, and keeps all of "
            "them. Take torch.distributed.fsdp.fully_shard, or leave StepInBackward out"
        )


def gradients_come_later(weights: Iterable[Tensor]) -> torch.nn.Module | None:
    """The module that adds gradients up over processes when backward has left the weight, if any.

    That is a DistributedDataParallel or FullyShardedDataParallel that has one of the weights.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.nn.parallel import DistributedDataParallel

    kinds = (DistributedDataParallel, FullyShardedDataParallel)
    held = set(map(id, weights))
    for module in gc.get_objects():  # they leave no mark on a parameter
        if issubclass(type(module), kinds) and any(id(p) in held for p in module.parameters()):
            found: torch.nn.Module = module
            return found
    return None
