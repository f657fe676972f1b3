"""torch.optim's classes over the rules: a declaration each, and what one does beyond its rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from gradstep.backends.update import has_shape
from gradstep.linalg.newton_schulz import iterations
from gradstep.optimizer.optimizer import Optimizer, planner_of
from gradstep.optimizer.parameter_groups import GroupReader
from gradstep.optimizer.weight_spec import state_specs
from gradstep.program.formats import StateDType
from gradstep.rules.adadelta import adadelta
from gradstep.rules.adafactor import adafactor
from gradstep.rules.adagrad import adagrad
from gradstep.rules.adam import adam
from gradstep.rules.adamax import adamax
from gradstep.rules.asgd import asgd
from gradstep.rules.muon import muon
from gradstep.rules.nadam import nadam
from gradstep.rules.radam import radam
from gradstep.rules.rmsprop import rmsprop
from gradstep.rules.rprop import rprop
from gradstep.rules.sgd import sgd
from gradstep.rules.sparse_adam import sparse_adam
from gradstep.torch_optim.declaration import over

# The arguments stand as torch has them: in its order, with its defaults.


class _SGDGroups(GroupReader):
    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")


@over(sgd)
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum or without: :func:`gradstep.sgd`.

    Takes torch.optim.SGD's arguments and its checkpoints. Plain descent has its bits.
    """

    _reads_groups = _SGDGroups

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-3, momentum: float = 0, dampening: float = 0,
        weight_decay: float | Tensor = 0, nesterov: bool = False, *, maximize: bool = False,
        foreach: bool | None = None, differentiable: bool = False, fused: bool | None = None,
        engine: str = "auto",
        state_dtype: StateDType = None, low_precision: str = "nearest",
    ) -> None: ...  # fmt: skip


class _AdamGroups(GroupReader):
    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        beta1, beta2 = group["betas"]
        if isinstance(beta1, Tensor) != isinstance(beta2, Tensor):
            raise ValueError("betas must be either both floats or both Tensors")


@over(
    adam,
    order="lr betas eps weight_decay amsgrad maximize foreach capturable differentiable fused "
    "decoupled_weight_decay",
)
class Adam(Optimizer):
    """Adam, and AMSGrad: :func:`gradstep.adam`.

    Takes torch.optim.Adam's arguments and its checkpoints.
    """

    _reads_groups = _AdamGroups

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, amsgrad: bool = False, *, foreach: bool | None = None,
        maximize: bool = False, capturable: bool = False, differentiable: bool = False,
        fused: bool | None = None, decoupled_weight_decay: bool = False, engine: str = "auto",
        state_dtype: StateDType = None, low_precision: str = "nearest",
    ) -> None: ...  # fmt: skip

    def _begin(self, params: Any, rule: Any, defaults: dict[str, Any], engine: str) -> None:
        if defaults["foreach"] and not defaults["capturable"]:  # before all else, as torch does
            betas = defaults["betas"] if isinstance(defaults["betas"], tuple | list) else ()
            numbers = {"lr": defaults["lr"], **{f"betas[{i}]": b for i, b in enumerate(betas)}}
            for name, value in numbers.items():
                if isinstance(value, Tensor):
                    raise ValueError(
                        f"{name} as a Tensor is not supported for capturable=False and foreach=True"
                    )
        super()._begin(params, rule, defaults, engine)


@over(adam, decoupled_weight_decay=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: the weight itself shrinks by ``lr · weight_decay``.

    Takes torch.optim.AdamW's arguments and its checkpoints.

    Args:
        weight_decay: shrinks the weight itself by ``lr · weight_decay``.
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, *, maximize: bool = False,
        foreach: bool | None = None, capturable: bool = False, differentiable: bool = False,
        fused: bool | None = None, engine: str = "auto",
        state_dtype: StateDType = None, low_precision: str = "nearest",
    ) -> None: ...  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # whatever checkpoint was loaded
            group["decoupled_weight_decay"] = True


@over(
    nadam,
    order="lr betas eps weight_decay momentum_decay decoupled_weight_decay maximize foreach "
    "capturable differentiable",
)
class NAdam(Optimizer):
    """Adam with Nesterov's momentum: :func:`gradstep.nadam`.

    Takes torch.optim.NAdam's arguments and its checkpoints.
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 2e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0, momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False, *, foreach: bool | None = None,
        maximize: bool = False, capturable: bool = False, differentiable: bool = False,
        engine: str = "auto",
        state_dtype: StateDType = None, low_precision: str = "nearest",
    ) -> None: ...  # fmt: skip


@over(
    radam,
    order="lr betas eps weight_decay maximize foreach capturable decoupled_weight_decay "
    "differentiable",
)
class RAdam(Optimizer):
    """Adam, rectified: :func:`gradstep.radam`.

    Takes torch.optim.RAdam's arguments and its checkpoints.
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0, decoupled_weight_decay: bool = False, *,
        foreach: bool | None = None, maximize: bool = False, capturable: bool = False,
        differentiable: bool = False, engine: str = "auto",
        state_dtype: StateDType = None, low_precision: str = "nearest",
    ) -> None: ...  # fmt: skip


@over(adamax)
class Adamax(Optimizer):
    """Adam with the largest recent gradient: :func:`gradstep.adamax`.

    Takes torch.optim.Adamax's arguments and its checkpoints.
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 2e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0, foreach: bool | None = None, *,
        maximize: bool = False, differentiable: bool = False, capturable: bool = False,
        engine: str = "auto",
        state_dtype: StateDType = None, low_precision: str = "nearest",
    ) -> None: ...  # fmt: skip


class _SparseAdamGroups(GroupReader):
    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise unless every option of a group is allowed."""
        super().check_group(group)
        if not group["eps"] > 0:
            raise ValueError(f"Invalid epsilon value: {group['eps']}; SparseAdam needs more than 0")


@over(sparse_adam)
class SparseAdam(Optimizer):
    """Adam for sparse gradients: :func:`gradstep.sparse_adam`.

    Takes torch.optim.SparseAdam's arguments and its checkpoints. Only the rows that a gradient
    names are touched. Its engine is the eager one.

    Args:
        params: dense real tensors, ``(name, tensor)`` pairs, or dicts of parameter groups.
        lr: the learning rate, above 0.
        eps: keeps the division from blowing up, above 0.

    Raises:
        RuntimeError: at a step, a dense gradient.
    """

    _reads_groups = _SparseAdamGroups

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, maximize: bool = False, *,
        state_dtype: StateDType = None, low_precision: str = "nearest",
    ) -> None: ...  # fmt: skip

    def _begin(self, params: Any, rule: Any, defaults: dict[str, Any], engine: str) -> None:
        super()._begin(params, rule, defaults, engine)
        if not defaults["lr"] > 0:  # here alone: a scheduler may come down to 0
            raise ValueError(
                f"Invalid learning rate: {defaults['lr']}; SparseAdam needs more than 0"
            )

    def state_dict(self) -> dict[str, Any]:
        """The state dict of torch.optim.SparseAdam, whose step counts are plain ints.

        With a tensor there, torch's class would work out its step sizes in float32.
        """
        saved = super().state_dict()
        state = {
            key: {**entry, "step": int(entry["step"])}
            if isinstance(entry, Mapping) and "step" in entry
            else entry
            for key, entry in saved["state"].items()
        }
        return {**saved, "state": state}

    def _check_parameter(self, p: Tensor) -> None:
        super()._check_parameter(p)
        if p.is_sparse:
            raise ValueError(
                f"SparseAdam requires dense parameter tensors; {self.name_of(p)} is not"
            )
        if p.is_complex():
            raise ValueError(
                f"SparseAdam does not support complex parameters; {self.name_of(p)} is one"
            )


@over(
    rmsprop,
    order="lr momentum alpha eps centered weight_decay capturable foreach maximize differentiable",
)
class RMSprop(Optimizer):
    """RMSprop, centred or not, with momentum or without: :func:`gradstep.rmsprop`.

    Takes torch.optim.RMSprop's arguments and its checkpoints.
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-2, alpha: float = 0.99, eps: float = 1e-8,
        weight_decay: float = 0, momentum: float = 0, centered: bool = False,
        capturable: bool = False, foreach: bool | None = None, maximize: bool = False,
        differentiable: bool = False, *, engine: str = "auto",
        state_dtype: StateDType = None, low_precision: str = "nearest",
    ) -> None: ...  # fmt: skip


@over(
    adagrad,
    order="lr lr_decay eps weight_decay initial_accumulator_value foreach maximize "
    "differentiable fused",
)
class Adagrad(Optimizer):
    """Adagrad: :func:`gradstep.adagrad`.

    Takes torch.optim.Adagrad's arguments and its checkpoints; as there, the states exist from
    construction on. A sparse gradient updates only the rows that it names.
    """

    _states_at_construction = True

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-2, lr_decay: float = 0, weight_decay: float = 0,
        initial_accumulator_value: float = 0, eps: float = 1e-10, foreach: bool | None = None, *,
        maximize: bool = False, differentiable: bool = False, fused: bool | None = None,
        engine: str = "auto",
        state_dtype: StateDType = None, low_precision: str = "nearest",
    ) -> None: ...  # fmt: skip

    def share_memory(self) -> None:
        """Put the sums into memory that other processes can share."""
        for group in self.param_groups:
            for p in group["params"]:
                for name in state_specs(planner_of(self).rule)["sum"].names:
                    self.state[p][name].share_memory_()


@over(adadelta, order="lr rho eps weight_decay maximize capturable foreach differentiable")
class Adadelta(Optimizer):
    """Adadelta: :func:`gradstep.adadelta`.

    Takes torch.optim.Adadelta's arguments and its checkpoints.
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 1.0, rho: float = 0.9, eps: float = 1e-6,
        weight_decay: float = 0, foreach: bool | None = None, *, capturable: bool = False,
        maximize: bool = False, differentiable: bool = False, engine: str = "auto",
        state_dtype: StateDType = None, low_precision: str = "nearest",
    ) -> None: ...  # fmt: skip


class _RpropGroups(GroupReader):
    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        minus, plus = group["etas"]
        if not 0.0 < minus < 1.0 < plus:
            raise ValueError(
                f"Invalid eta values: {minus}, {plus}; the first must lie between 0 and 1, the "
                "second above 1"
            )


@over(rprop, order="lr etas step_sizes foreach maximize differentiable capturable")
class Rprop(Optimizer):
    """Rprop: :func:`gradstep.rprop`.

    Takes torch.optim.Rprop's arguments and its checkpoints.

    Args:
        lr: the size of the first steps.
        etas: what a step is multiplied by where the gradient's sign turned, and where it was kept.
        step_sizes: the smallest and the largest step.
    """

    _reads_groups = _RpropGroups

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-2, etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50), *, capturable: bool = False,
        foreach: bool | None = None, maximize: bool = False, differentiable: bool = False,
        engine: str = "auto",
        state_dtype: StateDType = None, low_precision: str = "nearest",
    ) -> None: ...  # fmt: skip


@over(asgd)
class ASGD(Optimizer):
    """Averaged stochastic gradient descent: :func:`gradstep.asgd`.

    Takes torch.optim.ASGD's arguments and its checkpoints.

    Args:
        lr: the learning rate at the start.
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-2, lambd: float = 1e-4, alpha: float = 0.75,
        t0: float = 1e6, weight_decay: float = 0, foreach: bool | None = None,
        maximize: bool = False, differentiable: bool = False, capturable: bool = False, *,
        engine: str = "auto",
        state_dtype: StateDType = None, low_precision: str = "nearest",
    ) -> None: ...  # fmt: skip


class _AdafactorGroups(GroupReader):
    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise unless every option of a group is allowed, in torch's words where it has some."""
        eps1 = self.hyperparameter(group, "eps1")
        if eps1 is not None and not eps1 >= 0:
            raise ValueError(f"epsilon1 should be >= 0 but is: {eps1}")
        if group["d"] < 1:
            raise ValueError(f"Clipping threshold d should be >= 1 but is: {group['d']}")
        if group["beta2_decay"] > 0:
            raise ValueError(f"beta2_decay should be <= 0 but is: {group['beta2_decay']}")
        super().check_group(group)


@over(adafactor)
class Adafactor(Optimizer):
    """Adafactor, with a second moment a row and a column: :func:`gradstep.adafactor`.

    Takes torch.optim.Adafactor's arguments and its checkpoints.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of parameter groups. Real ones.
        lr: the learning rate, at most 1/√step of which is used.

    Raises:
        RuntimeError: at a step, complex parameters and sparse gradients.
    """

    _reads_groups = _AdafactorGroups

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-2, beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3), d: float = 1.0, weight_decay: float = 0.0,
        *, foreach: bool | None = None, maximize: bool = False, engine: str = "auto",
        state_dtype: StateDType = None, low_precision: str = "nearest",
    ) -> None: ...  # fmt: skip


#: The ways in which a matrix' shape scales its step.
class _MuonGroups(GroupReader):
    optional = {  # noqa: RUF012 - read only
        "coefficients": "fixed", "sum_momentum": False, "flatten": None, "split": None,
        "precision": "bfloat16",
    }  # fmt: skip

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise unless every option of a group is allowed."""
        self._check_adjustment(group)
        super().check_group(group)
        coefficients = group.get("coefficients", "fixed")
        iterations(coefficients, group["ns_coefficients"], int(group["ns_steps"]))

    def check_changed(self, group: Mapping[str, Any], loaded: bool = False) -> None:
        """Raise unless a step can be made with the options that a group has by now."""
        self._check_adjustment(group)
        super().check_changed(group, loaded)

    def _check_adjustment(self, group: Mapping[str, Any]) -> None:
        how, known = group["adjust_lr_fn"], self.rule.choices["adjust_lr_fn"].values
        if how not in known:  # as torch says it
            listed = ", ".join(repr(name) for name in known if name is not None)
            raise ValueError(
                f"Adjust learning rate function {how} is not supported; choose one of {listed}"
            )


@over(muon, beyond=tuple(_MuonGroups.optional))
class Muon(Optimizer):
    """Muon, for matrices: :func:`gradstep.muon`.

    Takes torch.optim.Muon's arguments and its checkpoints.

    Args:
        params: tensors of two dimensions, or of more with ``flatten``, ``(name, tensor)`` pairs,
            or dicts of parameter groups. Leave biases, norms and embeddings to AdamW.
        flatten: what a tensor of more dimensions is: False for a batch of matrices, the last two
            dimensions of each (experts); True for one matrix, all dimensions behind the first as
            columns (filters of convolutions); None for a mistake, as in torch.
        ns_coefficients: of the Newton–Schulz polynomial.
        ns_steps: how many Newton–Schulz iterations; below 100.
        adjust_lr_fn: ``"original"``, ``"match_rms_adamw"``, ``"spectral_unclamped"`` (torch's own
            takes it since 2.14), ``"unit_rms"``, ``"spectral"``, or None for the first.

    Raises:
        RuntimeError: at a step, complex parameters and sparse gradients.
    """

    _reads_groups = _MuonGroups

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-3, weight_decay: float = 0.1,
        momentum: float = 0.95, nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7, ns_steps: int = 5, adjust_lr_fn: str | None = None, *,
        coefficients: str = "fixed", sum_momentum: bool = False, flatten: bool | None = None,
        split: int | Sequence[int] | None = None, precision: str = "bfloat16",
        engine: str = "auto",
        state_dtype: StateDType = None, low_precision: str = "nearest",
    ) -> None: ...  # fmt: skip

    def _check_parameter(self, p: Tensor) -> None:
        super()._check_parameter(p)
        if not has_shape(p) or p.dim() == 2:
            return
        said = f"Muon only supports 2D parameters, and {self.name_of(p)} has size {tuple(p.shape)}"
        if p.dim() < 2:
            raise ValueError(f"{said}. Give it to AdamW.")
        if self.param_groups[-1].get("flatten") is None:
            flat = f"{p.shape[0]} × {p[0].numel()}"
            raise ValueError(
                f"{said}. Say what it is: flatten=False takes a batch of matrices, the last two "
                f"dimensions of each (experts), flatten=True one of {flat} (filters). Or give it "
                "to AdamW."
            )
