"""Random numbers of a rule's own: a function of a key, the step and a seed; no generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradstep.rule.opaque import opaque

#: Elements that are worked on at a time, so that what lies between is kept in a cache.
_CHUNK = 1 << 15
#: The state that is kept beside a rule's own.
NOISE_KEY = "noise_key"
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64

# Of the inverse of the normal distribution: Wichura 1988, algorithm AS 241 (PPND16).
_NEAR = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4,
     4.5921953931549871457e4, 1.3731693765509461125e4, 1.9715909503065514427e3,
     1.3314166789178437745e2, 3.387132872796366608e0),
    (5.226495278852854561e3, 2.8729085735721942674e4, 3.9307895800092710610e4,
     2.1213794301586595867e4, 5.3941960214247511077e3, 6.8718700749205790830e2,
     4.2313330701600911252e1, 1.0),
)  # fmt: skip
_MIDDLE = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1,
     1.27045825245236838258e0, 3.64784832476320460504e0, 5.76949722146069140550e0,
     4.63033784615654529590e0, 1.42343711074968357734e0),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2,
     1.48103976427480074590e-1, 6.89767334985100004550e-1, 1.67638483018380384940e0,
     2.05319162663775882187e0, 1.0),
)  # fmt: skip
_FAR = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3,
     2.65321895265761230930e-2, 2.96560571828504891230e-1, 1.78482653991729133580e0,
     5.46378491116411436990e0, 6.65790464350110377720e0),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5,
     7.86869131145613259100e-4, 1.48753612908506148525e-2, 1.36929880922735805310e-1,
     5.99832206555887937690e-1, 1.0),
)  # fmt: skip


@opaque(dtype=torch.float64, returns=("x", "key"))
def standard_normal(x: Tensor, key: Tensor, step: float, seed: float) -> tuple[Tensor, Tensor]:
    """A normal number for each element of each weight, of mean 0 and variance 1, and the key.

    What a rule gets that has ``noise`` among its keyword arguments. The key, two numbers of 24
    bits, is made at the weight's first step of what ``x`` is then, its value plus its gradient, and
    kept as a state. The bits of the noise follow from the key, the step, the seed and the element's
    place, and from nothing else: they are the same in all engines, for any number of threads, and
    after a checkpoint.

    Only operations that are rounded exactly are used, so that no vectorised logarithm tells
    machines apart.
    """
    flat = x.reshape(x.shape[0], -1).contiguous()
    places = torch.arange(flat.shape[1], device=x.device)
    made = torch.empty_like(flat)
    keys = [
        own if bool(own.any()) else _key(row, places)
        for row, own in zip(flat, key.double().to(torch.int64), strict=True)
    ]
    for own, out in zip(keys, made, strict=True):
        stream = _mixed(_mixed((own[0] << 24) + own[1] + (int(seed) << 48)) + int(step))
        for begin in range(0, len(out), _CHUNK):
            at = places[begin : begin + _CHUNK]
            out[begin : begin + _CHUNK] = _normal(_mixed(_mixed(at * _GOLDEN + stream)))
    return made.view(x.shape), torch.stack(keys).to(key.dtype)


def _key(row: Tensor, places: Tensor) -> Tensor:
    """Two numbers of 24 bits that another weight does not have: of a sum, in whatever order."""
    total = _mixed((_mixed(row.view(torch.int64)) * (2 * places + 1)).sum())
    return torch.stack([_shifted(total, 40), _shifted(total, 16) & 0xFFFFFF | 1])


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64 (Steele, Lea & Flood 2014) on int64, which wraps around."""
    x = x + _GOLDEN
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _normal(bits: Tensor) -> Tensor:
    """Of 64 random bits a normal number, by the inverse of its distribution."""
    share = (_shifted(bits, 11).double() + 0.5) * 2.0**-53
    off = share - 0.5
    near = 0.180625 - off * off
    made = off * _ratio(_NEAR, near.clamp(min=0.0))
    tail = (-_log(torch.minimum(share, 1 - share).clamp(min=2.0**-60))).sqrt()
    middle, far = _ratio(_MIDDLE, tail - 1.6), _ratio(_FAR, tail - 5.0)
    outer = torch.where(tail <= 5.0, middle, far)
    return torch.where(off.abs() <= 0.425, made, outer.copysign(off))


def _ratio(polynomials: tuple[tuple[float, ...], tuple[float, ...]], x: Tensor) -> Tensor:
    above, below = (_polynomial(each, x) for each in polynomials)
    return above / below


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[0])
    for each in coefficients[1:]:
        value = value * x + each
    return value


def _log(x: Tensor) -> Tensor:
    """The natural logarithm, by a series of which each operation is rounded exactly."""
    part, power = torch.frexp(x)
    low = part < math.sqrt(0.5)
    part = torch.where(low, part * 2, part)
    s = (part - 1) / (part + 1)
    series = _polynomial(tuple(1 / k for k in range(23, 0, -2)), s * s)
    return 2 * s * series + (power - low.to(power.dtype)).double() * math.log(2)
