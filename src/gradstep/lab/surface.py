"""Loss surfaces over two weights, and the paths of the rules on them.

Two are formulas of old, one is LeNet's own: the plane through its weights in which the paths of the
race lie best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import gradstep
from gradstep.lab.dataset import Dataset
from gradstep.lab.optimizers import asks_for_hessian, make_optimizer, needs_closure

#: Steps of a rule on a formula.
STEPS = 200

#: The learning rates that are tried for each rule on a formula: three a decade, 0.0001 to 4.64.
RATES = tuple(float(f"{10 ** (i / 3):.3g}") for i in range(-12, 3))

#: Points a side of the grid on which a formula is drawn, and LeNet's loss.
GRID = 81
PLANE_GRID = 21

#: Images on which LeNet's loss is worked out for the picture, and most weights of a network.
PLANE_IMAGES = 128
PLANE_WEIGHTS = 2_000_000


@dataclass(frozen=True)
class Formula:
    """A loss of two weights. ``loss`` maps tensors ``x, y`` of any one shape to that shape.

    ``start`` is where the paths begin, ``lowest`` where the loss is 0; the picture shows
    ``x_range`` and ``y_range``.
    """

    name: str
    text: str
    loss: Callable[[Tensor, Tensor], Tensor]
    start: tuple[float, float]
    lowest: tuple[float, float]
    x_range: tuple[float, float]
    y_range: tuple[float, float]


def _rosenbrock(x: Tensor, y: Tensor) -> Tensor:
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def _valley(x: Tensor, y: Tensor) -> Tensor:
    # Turned by 30°: a valley along an axis would be no valley to rules that scale each weight.
    cosine, sine = math.cos(math.pi / 6), math.sin(math.pi / 6)
    return 0.5 * ((cosine * x + sine * y) ** 2 + 50 * (cosine * y - sine * x) ** 2)


FORMULAS = (
    Formula(
        "Rosenbrock's valley",
        "(1 − x)² + 100·(y − x²)²",
        _rosenbrock,
        (-1.2, 1.0),
        (1.0, 1.0),
        (-2.0, 2.0),
        (-1.0, 3.0),
    ),
    Formula(
        "An ill-conditioned quadratic",
        "½·(u² + 50·v²), axes u, v turned by 30°",
        _valley,
        (-1.6, 0.4),
        (0.0, 0.0),
        (-2.0, 2.0),
        (-2.0, 2.0),
    ),
)


@dataclass
class Path:
    """The way of one rule: ``points`` are x and y, ``losses`` the loss there, ``steps`` the number
    of steps taken up to each point."""

    optimizer: str
    lr: float
    points: list[tuple[float, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)


@dataclass
class Surface:
    """A loss over a rectangle, and paths on it. ``grid`` has a row for each y, from low to high."""

    name: str
    text: str
    x_label: str
    y_label: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    grid: list[list[float]]
    paths: list[Path]
    lowest: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """The surface with five digits a number; what is not finite is None."""
        return {
            **{name: getattr(self, name) for name in ("name", "text", "x_label", "y_label")},
            "x_range": self.x_range,
            "y_range": self.y_range,
            "lowest": self.lowest,
            "grid": [[_short(value) for value in row] for row in self.grid],
            "paths": [
                {
                    "optimizer": path.optimizer,
                    "lr": path.lr,
                    "x": [_short(x) for x, _ in path.points],
                    "y": [_short(y) for _, y in path.points],
                    "loss": [_short(loss) for loss in path.losses],
                    "steps": path.steps,
                }
                for path in self.paths
            ],
        }


def formula_surface(formula: Formula, optimizers: Sequence[str]) -> Surface:
    """The surface of a formula, with each rule's path at the best of :data:`RATES`."""
    xs = torch.linspace(*formula.x_range, GRID, dtype=torch.float64)
    ys = torch.linspace(*formula.y_range, GRID, dtype=torch.float64)
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return Surface(
        formula.name,
        formula.text,
        "x",
        "y",
        formula.x_range,
        formula.y_range,
        formula.loss(x, y).tolist(),
        [best_path(formula, optimizer) for optimizer in optimizers],
        formula.lowest,
    )


def best_path(formula: Formula, optimizer: str) -> Path:
    """The path with the lowest mean loss, of those at :data:`RATES` that stay in the picture.

    A rule that leaves it at all of them is shown as it does so at the smallest.
    """

    def order(path: Path) -> float:
        return math.fsum(path.losses) / len(path.losses) if len(path.steps) > STEPS else math.inf

    return min((formula_path(formula, optimizer, lr) for lr in RATES), key=order)


def formula_path(formula: Formula, optimizer: str, lr: float, steps: int = STEPS) -> Path:
    """The path of a rule from the formula's start, in float64. It ends where it leaves the
    picture."""
    place = nn.ParameterList([torch.tensor(formula.start, dtype=torch.float64)])
    weights = place[0]
    made = make_optimizer(optimizer, place, lr)
    (left, right), (bottom, top) = formula.x_range, formula.y_range

    def loss_anew() -> Tensor:
        made.zero_grad()
        loss = formula.loss(weights[0], weights[1])
        loss.backward()
        return loss

    random = torch.Generator().manual_seed(0)
    path = Path(optimizer, lr)
    for step in range(steps + 1):
        loss = loss_anew()
        x, y = weights.tolist()
        path.points.append((x, y))
        path.losses.append(float(loss.item()))
        path.steps.append(step)
        if step == steps or not (left <= x <= right and bottom <= y <= top):
            break
        if asks_for_hessian(made) and step % 10 == 0:
            again = formula.loss(weights[0], weights[1])
            made.update_hessian(gradstep.hutchinson(again, [weights], random))
        value = loss.detach()
        made.step(loss_anew if needs_closure(made) else lambda value=value: value)
    return path


def why_no_plane(model: nn.Module) -> str | None:
    """Why there is no picture of this network's loss; None if there can be one."""
    if any(True for _ in model.buffers()):
        return (
            "the network has buffers (as batch normalisation does), which a plane of weights lacks"
        )
    count = sum(p.numel() for p in model.parameters())
    if count > PLANE_WEIGHTS:
        return f"the network has {count:,} weights; the picture is for at most {PLANE_WEIGHTS:,}"
    return None


@torch.no_grad()
def plane_surface(
    model: nn.Module,
    data: Dataset,
    weights: Mapping[str, Tensor],
    steps: Mapping[str, Sequence[int]],
    lrs: Mapping[str, float],
) -> Surface:
    """The loss on the plane in which the rules' paths through all weights lie best.

    Args:
        model: the network whose weights they are.
        data: the loss is that of its first :data:`PLANE_IMAGES` training images.
        weights: for each rule its float32 weights on the way, ``(points, all weights)``.
        steps: the step of each of these points.
        lrs: the learning rate of each.

    The axes are the first two principal components of all points of all paths together, and pass
    through their mean. The losses of a path are those of its weights themselves, not of their
    shadows on the plane.
    """
    finite = {name: w[torch.isfinite(w).all(1)] for name, w in weights.items()}
    together = torch.cat(list(finite.values())).double()
    mean = together.mean(0)
    centred = together - mean
    # The components of few points in many dimensions, from the small matrix of their products.
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    share = (values[-2:].flip(0) / values.sum().clamp_min(1e-300)).tolist()
    axes = (vectors[:, -2:].flip(1).T @ centred) / values[-2:].flip(0).clamp_min(1e-300).sqrt()[
        :, None
    ]
    places = {name: ((w.double() - mean) @ axes.T).tolist() for name, w in finite.items()}
    every = [point for own in places.values() for point in own]
    x_range, y_range = (_framed([point[axis] for point in every]) for axis in (0, 1))

    # A text has many answers an image, and takes as many times longer.
    count = max(1, PLANE_IMAGES * len(data.train_labels) // data.train_labels.numel())
    images, labels = data.train_images[:count], data.train_labels[:count]
    shapes = [(name, p.shape, p.dtype) for name, p in model.named_parameters()]
    model.eval()

    def loss_at(point: Tensor) -> float:
        pieces = point.split([shape.numel() for _, shape, _ in shapes])
        named = {
            name: piece.reshape(shape).to(dtype)
            for (name, shape, dtype), piece in zip(shapes, pieces, strict=True)
        }
        return float(cross_entropy(functional_call(model, named, (images,)).float(), labels))

    def side(ends: tuple[float, float]) -> list[float]:
        return torch.linspace(*ends, PLANE_GRID, dtype=torch.float64).tolist()

    grid = [
        [loss_at(mean + x * axes[0] + y * axes[1]) for x in side(x_range)] for y in side(y_range)
    ]
    paths = [
        Path(
            name,
            lrs[name],
            [(x, y) for x, y in places[name]],
            [loss_at(point) for point in finite[name]],
            list(steps[name][: len(places[name])]),
        )
        for name in weights
    ]
    x_label, y_label = (f"component {i + 1} ({s:.0%} of the variance)" for i, s in enumerate(share))
    return Surface(
        "The network's own loss",
        "of seed 0, on the plane in which the paths of all weights lie best (PCA)",
        x_label,
        y_label,
        x_range,
        y_range,
        grid,
        paths,
    )


def _framed(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.15 * (high - low) or 1.0
    return low - margin, high + margin


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None
