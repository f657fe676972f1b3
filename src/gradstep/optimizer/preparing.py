"""What a step takes of each parameter, got ready: its states, begun or as they are.

Nearly all weights are plain, and there may be thousands: whether all are is found out by calls over
whole lists, in a tenth of the time of a look with care at each, which has words for what does not
fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter, ge, is_, methodcaller
from types import NoneType
from typing import Any

import numpy
import torch
from torch import Tensor

from gradstep.backends.update import AlikeUpdates, Update, layout
from gradstep.optimizer.observer import Contents
from gradstep.optimizer.parameter_names import ParameterNames
from gradstep.optimizer.state_spec import StateSpec
from gradstep.optimizer.states import Beginnings, Entry, Unlike, unlike_weight
from gradstep.optimizer.weight_spec import WeightSpec, state_specs
from gradstep.program.format import DType
from gradstep.program.formats import seed_of, weight_format
from gradstep.rule.definition import Rule

_WEIGHTS = {Tensor, torch.nn.Parameter}
_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}
_NUMBERS = {torch.float32, torch.float64}

_dtype, _shape, _layout = attrgetter("dtype"), attrgetter("shape"), attrgetter("layout")
_is_cpu, _nbytes = attrgetter("is_cpu"), attrgetter("nbytes")
_held = torch.UntypedStorage.nbytes
_storage: Callable[[Any], Any] = Tensor.untyped_storage
if torch.__version__.startswith("2.7."):  # whose compiler stops at the method itself
    _storage = methodcaller("untyped_storage")  # twice as slow: 26 µs of 148 tensors


class Preparation:
    """Gets the updates of a step ready.

    Args:
        rule: names the states.
        contents: the states, which are only read.
        names: of the parameters.
    """

    def __init__(self, rule: Rule, contents: Contents, names: ParameterNames) -> None:
        self._rule, self._contents, self._names = rule, contents, names
        self._layouts: dict[int, Any] = {}  # by the ids of parameters
        self._dtypes: set[torch.dtype] = set()  # of the parameters that were plain last

    def know_layouts(self, params: Iterable[Tensor]) -> None:
        """Take the parameters' layouts for those that their states have."""
        by_shape: dict[torch.Size, Any] = {}
        for p in params:
            if p.layout is not torch.strided:
                self._layouts[id(p)] = None
            elif not p.is_contiguous():
                self._layouts[id(p)] = layout(p)
            else:  # as nearly always, and of thousands of parameters many are of one shape
                shape = p.shape
                if shape not in by_shape:
                    by_shape[shape] = layout(p)
                self._layouts[id(p)] = by_shape[shape]

    def forget_gone(self, most: int, params: Iterable[Tensor]) -> None:
        """Where there are more layouts than that, keep those of these parameters alone."""
        if len(self._layouts) > most:
            held = set(map(id, params))
            self._layouts = {key: own for key, own in self._layouts.items() if key in held}

    def updates(
        self,
        values: Mapping[str, Any],
        numbers: Sequence[str],
        names: Mapping[bool, Sequence[str]],
        params: Sequence[Tensor],
        gradients: Sequence[Tensor],
        entries: Sequence[Entry],
        begun: Sequence[bool],
        plain: bool = False,
    ) -> Sequence[Update]:
        """The updates of a step.

        Args:
            values: lr and every hyperparameter of the parameters' group, by name.
            numbers: the states that are one number.
            names: the other states, with rows and columns and without.
            params: the parameters.
            gradients: one a parameter.
            entries: the states of each, complete.
            begun: whether they have just been begun.
            plain: whether parameters, gradients and states are so, as :func:`are_plain` says.
        """
        rule, specs = self._rule, self._unlike(names)
        firsts = begun
        if "first" in rule.inputs:  # states may have been saved before the first step
            pairs = zip(begun, entries, strict=True)
            firsts = [new or ("step" in e and not float(e["step"])) for new, e in pairs]
        if plain and len(self._dtypes) == 1 and self._are_alike(names, numbers, entries):
            own = names[params[0].dim() > 1]
            namers = self._names.namers(self._contents, params)
            return AlikeUpdates(params, gradients, entries, own, numbers, firsts, begun, namers)
        all_specs = state_specs(rule)
        alike: Unlike = ({}, {}, {})
        updates: list[Update] = []
        for p, gradient, entry, new, first in zip(
            params, gradients, entries, begun, firsts, strict=True
        ):
            own, of_kind = names[p.dim() > 1], specs[p.dim() > 1]
            kept = None if rule.low_precision == "nearest" else weight_format(rule, p.dtype)
            if of_kind or kept is not None:
                own = [t for n in own for t in all_specs[n].names_for(p)]
                own += [] if kept is None else kept.beside
            states = {n: entry[n] for n in own} if own else {}
            counts = {n: entry[n] for n in numbers} if numbers else {}
            unlike: Unlike = unlike_weight(of_kind, p, values) if of_kind else alike
            name = self._names.namer(self._contents, p)
            update = Update(p, gradient, states, counts, first, name, *unlike, new, entry)
            if kept is not None:
                update.weight_format, update.seed = kept, seed_of(rule)
            updates.append(update)
        return updates

    def _are_alike(
        self,
        names: Mapping[bool, Sequence[str]],
        numbers: Sequence[str],
        entries: Sequence[Entry],
    ) -> bool:
        """Whether plain parameters of one dtype differ in their tensors alone."""
        if any(self._unlike(names).values()) or len(set(map(tuple, names.values()))) > 1:
            return False
        kept = ([entry[name] for entry in entries] for name in numbers)
        return all(len(set(map(_dtype, tensors))) == 1 for tensors in kept)

    def _unlike(self, names: Mapping[bool, Sequence[str]]) -> dict[bool, list[StateSpec]]:
        """Of these states those that have not always their weight's shape and dtype."""
        specs = state_specs(self._rule)
        beside = [each for each in specs.values() if isinstance(each, WeightSpec)]
        return {
            k: [*(specs[n] for n in own if not specs[n].is_like_weight), *beside]
            for k, own in names.items()
        }

    def plain_entries(
        self,
        beginnings: Beginnings,
        names: Mapping[bool, Sequence[str]],
        params: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> tuple[list[Entry], list[bool]] | None:
        """The states of each parameter, and whether they were just begun; None to look with care.

        For parameters that have all of their states or none, where all is plain and no engine need
        look again. Nothing is changed.

        Args:
            names: the states that a parameter has, with rows and columns and without.
        """
        if self._rule.low_precision != "nearest":
            return None
        state = self._contents.state
        held: list[Any] = list(map(state.get, params)) if state else [None] * len(params)
        states: list[list[Any]] = []
        counts: list[Any] = []
        if not {dict, NoneType}.issuperset(map(type, held)):
            return None
        dtypes: dict[bool, list[Any]] = {}
        if any(held):
            unlike = [spec for own in self._unlike(names).values() for spec in own]
            # Of one tensor of the weight's shape it is enough to know the dtype.
            formats = {s.name: s.format.dtype for s in unlike if isinstance(s.format, DType)}
            if beginnings.shared or len(formats) < len({spec.name for spec in unlike}):
                return None
            if formats:
                dtypes = {kind: [formats.get(n) for n in own] for kind, own in names.items()}
            try:
                states = [
                    [entry[n] for n in names[p.dim() > 1]] if entry else []
                    for p, entry in zip(params, held, strict=True)
                ]
                counts = [entry[n] for entry in held if entry for n in beginnings.numbers]
            except KeyError:
                return None
        self._dtypes = set()
        if not are_plain(params, gradients, states, counts, dtypes, self._dtypes):
            return None
        if all(held):
            return held, [False] * len(held)
        made = {kind: beginnings.makes_any(kind) for kind in (False, True)}
        copied = any(state.start == "gradient" for state in self._rule.states.values())
        if made[True] == made[False] and not any(held):
            nothing = [None] * len(held)
            new = beginnings.begin_all(params, gradients if copied else nothing)
            return new, [made[True]] * len(held)
        begun = [not entry and made[p.dim() > 1] for p, entry in zip(params, held, strict=True)]
        lacking = [i for i, entry in enumerate(held) if not entry]
        firsts = [gradients[i] if copied else None for i in lacking]
        new = beginnings.begin_all([params[i] for i in lacking], firsts)
        for i, entry in zip(lacking, new, strict=True):
            held[i] = entry
        return held, begun

    def entries(
        self, beginnings: Beginnings, params: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> tuple[list[Entry], list[bool]]:
        """Copies of what parameters have, completed, and whether they were just begun."""
        entries, begun = [], []
        for p, gradient in zip(params, gradients, strict=True):
            held = self._contents.state.get(p, {})
            if not isinstance(held, Mapping):
                name = self._names.of(self._contents.groups, p)
                raise TypeError(
                    f"optimizer.state of {name} is a {type(held).__name__}, not a dict of states "
                    "by name. Load a checkpoint, or delete it to start anew."
                )
            entry = dict(held)
            new = beginnings.begin(p, entry, gradient, self._names.namer(self._contents, p))
            if not new:
                beginnings.follow_layout(p, entry, self._layouts.get(id(p)))
            entries.append(entry)
            begun.append(new)
        return entries, begun


def are_plain(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[Sequence[Any]] = (),
    numbers: Sequence[Any] = (),
    dtypes: Mapping[bool, Sequence[torch.dtype | None]] | None = None,
    seen: set[torch.dtype] | None = None,
) -> bool:
    """Whether kernels can have all of these together, as far as the tensors themselves tell.

    Dense real tensors in the memory of the CPU, each gradient of the dtype, shape and layout of its
    weight, and so each state but for a dtype of its own, none sharing memory with another. False
    also means: look with care.

    Args:
        weights: the parameters.
        gradients: one a weight.
        states: of each weight those that have its shape; none where they have just been begun.
        numbers: all states of one number.
        dtypes: where states have dtypes of their own: whether a weight has rows and columns -> the
            dtypes of its states, None for the weight's.
        seen: the dtypes of the weights, as far as was looked; added to.
    """
    seen = set() if seen is None else seen
    held: list[Any] = list(chain.from_iterable(states))
    if not (
        _WEIGHTS.issuperset(map(type, weights))
        and _only(Tensor, map(type, gradients))
        and _only(Tensor, map(type, held))
    ):
        return False
    owners = [p for p, own in zip(weights, states, strict=True) for _ in own] if states else []
    own_dtypes: list[Any] = []
    if dtypes and states:
        pairs = zip(weights, states, strict=True)
        own_dtypes = [dtype for p, own in pairs if own for dtype in dtypes[p.dim() > 1]]
    if len(gradients) != len(weights) or (own_dtypes and len(own_dtypes) != len(held)):
        return False
    starts: list[int] = []
    sizes: list[int] = []
    # Piece by piece, so that what is asked of a tensor finds it in a fast cache; and long lists of
    # shapes would wake the garbage collector.
    for piece in _pieces(len(weights)):
        of_weights, of_gradients = weights[piece], gradients[piece]
        wanted = list(map(_dtype, of_weights))
        seen.update(wanted)
        if not (
            _DTYPES.issuperset(seen)
            and _are_alike(of_gradients, of_weights, wanted)
            and _lie_plainly([*of_weights, *of_gradients], starts, sizes)
            and not any(map(Tensor.is_inference, of_weights))
        ):
            return False
    for piece in _pieces(len(held)):
        of_states, of_owners = held[piece], owners[piece]
        wanted = list(map(_dtype, of_owners))
        if own_dtypes:
            wanted = [own or of for own, of in zip(own_dtypes[piece], wanted, strict=True)]
        if not (
            _DTYPES.issuperset(wanted)
            and _are_alike(of_states, of_owners, wanted)
            and _lie_plainly(of_states, starts, sizes)
            and not any(map(Tensor.is_inference, of_states))
        ):
            return False
    return _are_apart(starts, sizes) and _are_numbers(numbers)


def _pieces(count: int) -> Iterator[slice]:
    return (slice(start, start + 256) for start in range(0, count, 256))


def _are_alike(
    tensors: Sequence[Tensor], owners: Sequence[Tensor], dtypes: Sequence[torch.dtype]
) -> bool:
    shapes = list(map(_shape, owners))
    return all(map(is_, map(_dtype, tensors), dtypes)) and list(map(_shape, tensors)) == shapes


def _lie_plainly(tensors: Sequence[Tensor], starts: list[int], sizes: list[int]) -> bool:
    """Whether tensors lie in the CPU's memory in the order of their elements.

    Args:
        tensors: of plain types.
        starts, sizes: where they lie, and their bytes; added to.
    """
    plain = (
        _only(torch.strided, map(_layout, tensors))
        and all(map(_is_cpu, tensors))
        and all(map(Tensor.is_contiguous, tensors))
        and not any(map(Tensor.is_neg, tensors))
    )
    if plain:
        own = list(map(_nbytes, tensors))
        plain = _have_memory(tensors, own)
        sizes += own
        starts += map(Tensor.data_ptr, tensors)
    return plain


def are_apart(weights: Sequence[Tensor]) -> bool:
    """Whether weights are such that it can be told, and no two share memory."""
    return (
        _WEIGHTS.issuperset(map(type, weights))
        and _only(torch.strided, map(_layout, weights))
        and all(map(_is_cpu, weights))
        and all(map(Tensor.is_contiguous, weights))
        and _are_apart(list(map(Tensor.data_ptr, weights)), list(map(_nbytes, weights)))
    )


def _only(wanted: Any, found: Any) -> bool:
    return set(found) <= {wanted}


def _have_memory(tensors: Sequence[Tensor], sizes: Sequence[int]) -> bool:
    """Whether each storage is as large as its tensor needs: it may have been resized."""
    needed = list(sizes)
    if any(map(Tensor.storage_offset, tensors)):
        for place, offset in enumerate(map(Tensor.storage_offset, tensors)):
            if offset:
                needed[place] += int(offset) * tensors[place].element_size()
    held = list(map(_held, map(_storage, tensors)))
    return held == needed or all(map(ge, held, needed))


def _are_apart(starts: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether no two of these stretches of memory share any."""
    lengths = numpy.array(sizes, numpy.int64)
    places = numpy.array(starts, numpy.uint64).view(numpy.int64)
    places, lengths = places[lengths > 0], lengths[lengths > 0]
    order = places.argsort()
    ends = (places + lengths)[order]
    return bool((ends[:-1] <= places[order][1:]).all())


def _are_numbers(numbers: Sequence[Any]) -> bool:
    return (
        _only(Tensor, map(type, numbers))
        and _NUMBERS.issuperset(map(_dtype, numbers))
        and _only(1, map(Tensor.numel, numbers))
        and _only(torch.strided, map(_layout, numbers))
        and all(map(_is_cpu, numbers))
        and _have_memory(numbers, list(map(_nbytes, numbers)))
    )
