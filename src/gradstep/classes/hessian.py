"""``HessianOptimizer``: for rules that divide by the Hessian's diagonal, which no step can see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.update import describe, in_pairs
from gradstep.optimizer.optimizer import Optimizer, planner_of
from gradstep.optimizer.states import Beginnings, shared_states
from gradstep.optimizer.weight_spec import state_specs
from gradstep.rule.definition import Rule
from gradstep.rule.hyperparameter import Interval, check_number


@dataclass(frozen=True)
class Estimate:
    """An estimate of the Hessian's diagonal for one parameter.

    Attributes:
        parameter: the parameter.
        group: its group.
        found: returns the estimate, made anew at each call; of complex weights, in pairs.
    """

    parameter: Tensor
    group: dict[str, Any]
    found: Callable[[], Tensor]


class HessianOptimizer(Optimizer):
    """An optimizer whose rule has a state ``hessian``, which :meth:`update_hessian` fills.

    :class:`gradstep.Sophia` is one. With a rule of your own, or a chain, it takes the arguments of
    :class:`gradstep.Optimizer`. The rule leaves its ``hessian`` as it is, and has a hyperparameter
    ``hessian_decay``, or else ``beta2``, which says how much of it is kept at each estimate.
    """

    @torch.no_grad()
    def update_hessian(
        self,
        estimates: Mapping[Tensor, Tensor] | Iterable[Tensor | None] | None = None,
        *,
        batch_size: float | None = None,
    ) -> None:
        """Take an estimate of the Hessian's diagonal into the average, between two steps.

        Args:
            estimates: by parameter, or in the order of the parameters; None, or left out, for one
                whose average stays as it is. Default: the squares of the parameters' own gradients,
                times ``batch_size``, which a backward pass from :func:`gradstep.sampled_loss` has
                left there (Gauss–Newton–Bartlett).
            batch_size: over how many samples that loss is a mean: of a language model, over how
                many words; with several processes, over those of all.

        Raises:
            TypeError: no tensors, of another dtype than the weight's, or a ``batch_size`` where
                estimates are given or none where they are not.
            ValueError: of another shape or device, not finite, for a parameter that the optimizer
                does not hold, or too few of them. All averages are as they were.
            RuntimeError: no estimates, and no gradient at all; or a rule that cannot begin without
                its first gradient.
        """
        planner = planner_of(self)
        state, beta = _names_of_hessian(planner.rule)
        if estimates is not None and batch_size is not None:
            raise TypeError(
                "batch_size is for the squares of gradients; estimates are taken as they are. "
                "Leave it out"
            )
        chosen = self._squares(batch_size) if estimates is None else self._by_parameter(estimates)
        entries = [self._entry(each) for each in chosen]
        for each, entry in zip(chosen, entries, strict=True):
            self._check_average(each, entry, state)
            finite = torch.isfinite(each.found()).all()
            if not bool(getattr(finite, "full_tensor", lambda finite=finite: finite)()):
                raise ValueError(
                    f"the estimate of the Hessian for {self.name_of(each.parameter)} holds inf or "
                    "nan. Leave this estimate out, or look for the loss or gradient that is not "
                    "finite"
                )
        for each, entry in zip(chosen, entries, strict=True):
            share = 1 - float(planner.reader.hyperparameter(each.group, beta))
            spec, found = state_specs(planner.rule)[state], each.found()
            is_complex = each.parameter.is_complex()
            dtype = each.parameter.dtype if is_complex else found.dtype
            held = spec.read(entry, dtype, each.parameter.shape)
            after = torch.lerp(in_pairs(held).to(found.dtype), found, share)
            whole = torch.view_as_complex(after) if is_complex else after
            new = spec.encoded(whole, each.parameter)
            if each.group.get("differentiable"):  # a graph may hold the average as it was
                entry.update(new)
            else:
                for name, tensor in new.items():
                    entry[name].copy_(tensor)
            if self.state.get(each.parameter):
                self.state[each.parameter].update(entry)
            else:
                self.state[each.parameter] = entry
                planner.know_layouts([each.parameter])

    def _squares(self, batch_size: float | None) -> list[Estimate]:
        """The Gauss–Newton–Bartlett estimates, from the gradients."""
        if batch_size is None:
            raise TypeError(
                "update_hessian() squares the gradients, and has to know over how many samples "
                "the loss was a mean: give it batch_size. Or give it estimates"
            )
        check_number("batch_size", batch_size, Interval(1))
        chosen = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    raise TypeError(
                        f"update_hessian() takes no sparse gradients, and {self.name_of(p)} has "
                        "one. Build the module with sparse=False"
                    )
                self._check(p, p.grad, "gradient")
                chosen.append(Estimate(p, group, _square(p.grad, float(batch_size))))
        if not chosen:
            raise RuntimeError(
                "update_hessian() got no estimates, and no parameter has a gradient. Call it after "
                "gradstep.sampled_loss(logits).backward() and before zero_grad()"
            )
        return chosen

    def _by_parameter(self, estimates: Any) -> list[Estimate]:
        """The estimates that were given, checked."""
        held = [(p, group) for group in self.param_groups for p in group["params"]]
        if isinstance(estimates, Tensor) or not isinstance(estimates, Iterable):
            raise TypeError(
                f"estimates is a {type(estimates).__name__}. Give a mapping of parameters to "
                "tensors, or a sequence of tensors in the order of the parameters"
            )
        if isinstance(estimates, Mapping):
            known = {id(p) for p, _ in held}
            for p in estimates:
                if id(p) not in known:
                    found = describe(p) if isinstance(p, Tensor) else repr(p)
                    raise ValueError(
                        f"there is an estimate for {found}, which is no parameter of the optimizer"
                    )
            values = [estimates.get(p) for p, _ in held]
        else:
            values = list(estimates)
            if len(values) != len(held):
                raise ValueError(
                    f"there are {len(values)} estimates for {len(held)} parameters. Give one for "
                    "each, None where there is none, or a mapping by parameter"
                )
        chosen = []
        for (p, group), value in zip(held, values, strict=True):
            if value is not None:
                self._check(p, value, "estimate of the Hessian")
                # What is climbed is the negative of what is descended.
                chosen.append(Estimate(p, group, _signed(value, bool(group.get("maximize")))))
        return chosen

    def _check(self, p: Tensor, value: Any, what: str) -> None:
        """Raise unless an estimate, or a gradient, can be one of a parameter."""
        if not isinstance(value, Tensor):
            raise TypeError(
                f"the {what} for {self.name_of(p)} is a {type(value).__name__}, not a tensor"
            )
        expected = f"Expected {describe(p)}, as the weight is"
        if value.shape != p.shape or value.device != p.device or value.layout != p.layout:
            raise ValueError(f"the {what} for {self.name_of(p)} is {describe(value)}. {expected}")
        if value.dtype != p.dtype and value.dtype != _wide(p.dtype):
            raise TypeError(f"the {what} for {self.name_of(p)} is {describe(value)}. {expected}")

    def _check_average(self, each: Estimate, entry: Mapping[str, Any], state: str) -> None:
        p = each.parameter
        for part in state_specs(planner_of(self).rule)[state].parts(p, {}):
            held = entry[part.name]
            fits = isinstance(held, Tensor) and held.shape == part.shape
            if not fits or held.dtype != part.dtype:
                found = describe(held) if isinstance(held, Tensor) else repr(held)
                wanted = describe(torch.empty(part.shape, dtype=part.dtype, device="meta"))
                raise ValueError(
                    f"state {part.name!r} of {self.name_of(p)} is {found}. Expected "
                    f"{wanted.removesuffix('meta')}{p.device}. Load a checkpoint, or delete the "
                    "parameter's entry in optimizer.state to start it anew"
                )

    def _entry(self, estimate: Estimate) -> dict[str, Any]:
        """The states of a parameter, begun where they are not there; nothing is changed yet."""
        p, group, planner = estimate.parameter, estimate.group, planner_of(self)
        rule = planner.rule
        entry = dict(self.state.get(p, {}))
        needs_gradient = "first" in rule.inputs or any(
            s.start == "gradient" for s in rule.states.values()
        )
        if not entry and needs_gradient:
            raise RuntimeError(
                f"{rule.name} begins with its first gradient, and {self.name_of(p)} has made "
                "no step yet. Make a step before the first update_hessian()"
            )
        numbers = planner.reader.numbers(group)
        shared = shared_states(rule, self.state.values(), numbers, {})
        Beginnings(rule, group, numbers, shared).begin(p, entry, None, planner.namer(p))
        return entry


def _names_of_hessian(rule: Rule) -> tuple[str, str]:
    """What the rule, or its chain, calls the average and how much of it is kept."""
    own = {n: n for n in (*rule.states, *rule.hyperparameters)}
    for stage, names in rule.stages or ((rule, own),):
        kept = "hessian_decay" if "hessian_decay" in stage.hyperparameters else "beta2"
        if "hessian" in stage.states and kept in stage.hyperparameters:
            return names["hessian"], names[kept]
    raise TypeError(
        f"{rule.name} has no state hessian with a hyperparameter beta2. Take a rule that "
        "has both, such as gradstep.sophia()"
    )


def _wide(dtype: torch.dtype) -> torch.dtype:
    """In which an estimate is averaged: float32 for the 16-bit types, otherwise the weight's."""
    return torch.promote_types(dtype, torch.float32)


def _square(gradient: Tensor, batch_size: float) -> Callable[[], Tensor]:
    def found() -> Tensor:
        g = in_pairs(gradient.detach().to(_wide(gradient.dtype)))
        return g * g * batch_size

    return found


def _signed(value: Tensor, negative: bool) -> Callable[[], Tensor]:
    def found() -> Tensor:
        estimate = in_pairs(value.detach().to(_wide(value.dtype)))
        return -estimate if negative else estimate

    return found
