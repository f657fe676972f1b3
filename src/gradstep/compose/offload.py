"""States elsewhere: on the CPU, where the steps are then made, or in files."""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.update import has_shape
from gradstep.classes.hessian import HessianOptimizer
from gradstep.compose.average import AveragedWeights
from gradstep.compose.gradient_hooks import owner_of, take
from gradstep.compose.host_copies import HostCopy, Line, line_to
from gradstep.compose.mapped_states import MappedStates
from gradstep.compose.on_host import OnHost
from gradstep.compose.weight_by_weight import gradients_come_later
from gradstep.compose.wrapper import Wrapper, _inside, rules_inside
from gradstep.optimizer.observer import observe
from gradstep.optimizer.optimizer import Optimizer, planner_of
from gradstep.program.shards import is_sharded


class Offload(Wrapper):
    """Keeps an optimizer's states on the CPU, or in files, while the model is on an accelerator.

    Each weight has a copy in the memory of the CPU. Gradients are copied there while ``backward()``
    runs; ``step()`` then makes the steps of the copies, by the kernels of the CPU and weight by
    weight as the gradients come, and sends each back. The loop stays as it is, and so do clipping,
    accumulation, schedulers and checkpoints. Any rule will do::

        optimizer = gradstep.Offload(gradstep.AdamW(model.parameters()))
        optimizer = gradstep.Offload(gradstep.AdamW(model.parameters()), states_in="/scratch")

    A step is all or nothing, as ever. See docs/offload.md.

    Args:
        optimizer: of gradstep, a partition, or a wrapper around one. States that it has already
            move.
        states_in: a folder for states, which then lie in memory-mapped files instead of memory; it
            is made if it is not there. Weights that are on the CPU have theirs there, too. Default:
            None, in memory.
        smallest: weights of fewer elements, and their states, stay where they are. Default: 4096.
        free_gradients: whether gradients leave the accelerator as soon as they are copied: they are
            added up on the CPU then, and ``clip_grad_norm_`` of this optimizer clips them. Default:
            False.
        copy_in_backward: whether gradients are copied while ``backward()`` runs, or all of them in
            ``step()``. What changes gradients behind ``backward()`` through ``.data`` is not seen
            otherwise. Default: True.

    Raises:
        TypeError: no optimizer, LBFGS, one of torch's, or a HessianOptimizer.
        ValueError: weights that are split among processes (DTensors); with ``free_gradients``, a
            wrapper that has to see the gradients, and DistributedDataParallel.
        OSError: ``states_in`` is no folder that can be written; at a step, a disk that is full.
    """

    _outermost = True
    _hands_closure_on = True
    _needs_all_gradients = "it makes the steps of all weights in step()"

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        states_in: str | os.PathLike[str] | None = None,
        smallest: int = 4096,
        free_gradients: bool = False,
        copy_in_backward: bool = True,
    ) -> None:
        super().__init__(optimizer)
        if isinstance(smallest, bool) or not isinstance(smallest, int) or smallest < 0:
            raise ValueError(f"Invalid smallest: {smallest!r}; expected a whole number of elements")
        self.smallest = smallest
        self.states_in = states_in
        self.free_gradients = free_gradients
        self.copy_in_backward = copy_in_backward
        self._check()
        self._begin()

    def _check(self) -> None:
        for rule in rules_inside(self.optimizer):
            if isinstance(rule, HessianOptimizer):
                raise TypeError(
                    f"{type(rule).__name__} is given estimates on the model's device, and Offload "
                    "has its states elsewhere. Leave Offload out"
                )
        for p in self._weights():
            if is_sharded(p):
                raise ValueError(
                    f"{self.name_of(p)} is split among processes (a DTensor). Leave Offload out, "
                    "and give fully_shard offload_policy=CPUOffloadPolicy(): the weights are on "
                    "the CPU then, and so are states and steps"
                )
        if not self.free_gradients:
            return
        for each in _inside(self.optimizer):
            if isinstance(each, Wrapper) and not isinstance(each, AveragedWeights):
                name = type(each).__name__
                raise ValueError(
                    f"free_gradients=True leaves {name} no gradients to work on. Leave one of the "
                    "two out; without Accumulate, gradients of several backward() are added up"
                )
        self._refuse_later_gradients()

    def _refuse_later_gradients(self) -> None:
        module = gradients_come_later(self._weights())
        if module is not None:
            raise ValueError(
                f"free_gradients=True cannot go with {type(module).__name__}, which adds the "
                "gradients of the processes up when backward has left the weight. Leave it out"
            )

    def _begin(self) -> None:
        self._copies: dict[int, HostCopy] = {}  # by the id of the weight
        self._copies_of: dict[int, HostCopy] = {}  # and by that of the copy
        self._lines: dict[torch.device, Line] = {}
        self._tick = itertools.count(1).__next__
        self._swapped = False
        self._later: bool | None = None  # whether gradients are complete only behind backward
        self._maps = None
        if self.states_in is not None:
            self._maps = MappedStates(self.states_in, self.smallest)
        # Accumulate's earlier batches, and what is added to a gradient, would be copied in vain.
        self._early = self.copy_in_backward and not any(self._keepers())
        *_, core = _inside(self.optimizer)
        self._between = OnHost(self)
        observe(core, self._between)
        self._follow()
        self._move_states()

    # Copies.

    def _travels(self, p: Tensor) -> bool:
        """Whether a weight has a copy on the CPU."""
        return not (p.is_cpu or p.is_meta) and p.numel() >= self.smallest

    def _follow(self) -> None:
        """Have a copy of each weight that is to have one, and of no other."""
        held = list(self._weights())
        for p in held:
            if id(p) in self._copies or not has_shape(p) or not self._travels(p):
                continue
            if p.device not in self._lines:
                self._lines[p.device] = line_to(p.device)
            copy = HostCopy(p, self._lines[p.device])
            self._copies[id(p)] = self._copies_of[id(copy.host)] = copy
        if len(self._copies) > len(held):
            kept = set(map(id, held))
            self._copies = {k: copy for k, copy in self._copies.items() if k in kept}
            self._copies_of = {id(copy.host): copy for copy in self._copies.values()}
        for copy in self._copies.values():
            if self._early and copy.parameter.requires_grad:
                take(copy.parameter, self)

    def _move_states(self) -> None:
        """Bring states that are on the device to their weights' copies."""
        for p, entry in self.state.items():
            if isinstance(p, Tensor) and id(p) in self._copies and isinstance(entry, dict):
                for name, state in entry.items():
                    if isinstance(state, Tensor) and not state.is_cpu:
                        entry[name] = state.to("cpu")

    def _arrived(self, p: Tensor) -> None:
        """The gradient of a weight is complete: copy it while others are being made."""
        copy = self._copies.get(id(p))
        if copy is None or p.grad is None or p.grad.requires_grad:
            return
        if self._later is None:
            if self.free_gradients:
                self._refuse_later_gradients()
            self._later = gradients_come_later(self._weights()) is not None
        if self._later:
            return
        copy.fetch_gradient(self._tick(), keep=self.free_gradients)
        if self.free_gradients:
            p.grad = None

    def _in_step(self, p: Tensor) -> Tensor:
        copy = self._copies.get(id(p))
        return p if copy is None else copy.host

    # A step: what is planned and written are the copies.

    @contextmanager
    def _on_host(self) -> Iterator[None]:
        """The groups hold the copies, and the states are theirs, while this lasts."""
        self._swap(to_host=True)
        try:
            yield
        finally:
            self._swap(to_host=False)

    def _swap(self, to_host: bool) -> None:
        """Put the copies of weights in the place of the weights, or the weights back."""

        def other(p: Any) -> Any:
            copy = (self._copies if to_host else self._copies_of).get(id(p))
            return p if copy is None else copy.host if to_host else copy.parameter

        *_, core = _inside(self.optimizer)
        rules: list[Any] = rules_inside(self.optimizer)
        for group in core.param_groups:
            group["params"][:] = map(other, group["params"])
        state: Any = defaultdict(dict, {other(p): entry for p, entry in core.state.items()})
        for stepped in (core, *rules):
            stepped.state = state
        for rule in rules:
            self._stand_between(rule, to_host)
        self._swapped = to_host

    def _stand_between(self, rule: Optimizer, begin: bool) -> None:
        """Have the weights that are elsewhere planned one by one, and their states put there."""
        apart = begin and (self._copies or self._maps is not None)
        planner_of(rule).one_by_one = self._between if apart else None

    def _begin_on_host(self) -> None:
        """A step begins: weights and gradients to the CPU, as far as they are not there."""
        self._follow()
        for copy in self._copies.values():
            copy.fetch_weight()
            if copy.parameter.grad is not None and not copy.has_gradient_of_now():
                copy.fetch_gradient(self._tick(), keep=False)
            copy.show_gradient(copy.held or copy.parameter.grad is not None)
        for line in self._lines.values():
            line.begin_sending()
        self._swap(to_host=True)

    def _end_on_host(self, done: bool) -> None:
        """A step has ended: send what has not been sent, and have all as it was."""
        if not self._swapped:
            return
        for copy in self._copies.values():
            copy.send_weight()
            copy.show_gradient(False)
            if done:
                copy.forget_gradient()
        for line in self._lines.values():
            line.end_sending()
        self._swap(to_host=False)

    def _in_order(self, weights: list[tuple[int, int, Tensor]]) -> list[tuple[int, int, Tensor]]:
        def order(each: tuple[int, int, Tensor]) -> int:
            copy = self._copies_of.get(id(each[2]))
            return 0 if copy is None else copy.order

        return sorted(weights, key=order)

    def _is_alone(self, p: Tensor) -> bool:
        if id(p) in self._copies_of:
            return True
        return self._maps is not None and p.numel() >= self.smallest

    def _before(self, p: Tensor) -> None:
        copy = self._copies_of.get(id(p))
        if copy is not None:
            copy.wait()

    def _after(self, p: Tensor) -> None:
        copy = self._copies_of.get(id(p))
        if copy is not None:
            copy.send_weight()

    def _stored(self, p: Tensor, entry: dict[str, Any]) -> dict[str, Any]:
        return entry if self._maps is None else self._maps.stored(entry, self.name_of(p))

    def _wait_for_all(self) -> None:
        for copy in self._copies.values():
            copy.wait()

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = self.optimizer.step(closure)
        self._follow()
        return loss

    def _begin_states(self) -> Any:
        begun = [copy for copy in self._copies.values() if copy.parameter.grad is not None]
        for copy in begun:  # all gradients are zeros, or it would be a step
            copy.host.grad = torch.zeros_like(copy.host, requires_grad=False)
        try:
            with self._on_host():
                return self.optimizer.step()
        finally:
            for copy in begun:
                copy.host.grad = None

    # Gradients.

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, those on the CPU included."""
        super().zero_grad(set_to_none)
        for copy in self._copies.values():
            copy.forget_gradient()

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """As ``torch.nn.utils.clip_grad_norm_``, over all gradients, wherever they are.

        Args:
            max_norm: the norm that all gradients together have at most.
            norm_type: of the norm. Default: 2.

        Returns:
            the norm before, on the CPU.
        """
        found: list[Tensor] = [p.grad for p in self._weights() if p.grad is not None]
        found += [c.gradient for c in self._copies.values() if c.gradient is not None]
        by_device: dict[torch.device, list[Tensor]] = {}
        for gradient in found:
            by_device.setdefault(gradient.device, []).append(gradient)
        norms = [torch.nn.utils.get_total_norm(g, norm_type).cpu() for g in by_device.values()]
        total = (
            torch.linalg.vector_norm(torch.stack(norms), norm_type) if norms else torch.zeros(())
        )
        share = torch.clamp(max_norm / (total + 1e-6), max=1.0)
        for device, gradients in by_device.items():
            torch._foreach_mul_(gradients, share.to(device))
        return total

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by torch.amp.GradScaler before it makes a step.

        It may have unscaled gradients that were copied, and torch does not count that as a change.

        Raises:
            RuntimeError: gradients have left their weights, where it looks for inf and nan.
        """
        for copy in self._copies.values():
            copy.doubt_gradient()
        if self.free_gradients and self._copies:
            raise RuntimeError(
                "GradScaler finds no gradients with free_gradients=True. Leave one of the two out, "
                "or train in bfloat16, which needs no scale"
            )
        return super()._step_supports_amp_scaling

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters to the optimizer inside; see there."""
        super().add_param_group(param_group)
        self._follow()

    # Checkpoints.

    def _load(self, state_dict: dict[str, Any], strict: bool) -> None:
        # torch brings states to where the weights are. The wrappers inside load at rest.
        *_, core = _inside(self.optimizer)
        hooks = (
            core.register_load_state_dict_pre_hook(lambda *_: self._swap(to_host=True)),
            core.register_load_state_dict_post_hook(
                lambda _: self._swap(to_host=False), prepend=True
            ),
        )
        for rule in rules_inside(self.optimizer):
            self._stand_between(rule, True)
        try:
            super()._load(state_dict, strict)
        finally:
            for rule in rules_inside(self.optimizer):
                self._stand_between(rule, False)
            for hook in hooks:
                hook.remove()
            if self._swapped:
                self._swap(to_host=False)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("optimizer", "smallest", "states_in", "free_gradients", "copy_in_backward")
        return {n: v for n, v in super().__getstate__().items() if n in (*kept, "_holder")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "optimizer" in state:
            self._begin()


def frees_gradients(p: Tensor) -> bool:
    """Whether a weight's gradient leaves it within backward, so that ``step()`` finds none."""
    owner = owner_of(p)
    return isinstance(owner, Offload) and owner.free_gradients
