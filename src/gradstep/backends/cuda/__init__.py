"""Generated kernels on NVIDIA's devices."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from gradstep.backends.base import Backend, Binding
from gradstep.backends.cuda.driver import Driver, DriverError, Unavailable
from gradstep.backends.eligibility import STORAGE, ineligible, ineligible_as_whole, unreadable
from gradstep.backends.update import Update
from gradstep.program.program import Program
from gradstep.program.shards import is_sharded, local
from gradstep.rule.graph import REDUCTIONS, in_order

if TYPE_CHECKING:
    from gradstep.backends.cuda.binding import DeviceKernel
    from gradstep.backends.cuda.images import Images


class Cuda(Backend):
    """One launch a group, for dense tensors on a device, with the bits of the CPU's kernels.

    Args:
        driver: of the devices; None for NVIDIA's, when the first tensor on one is met.
        name: as ``engine=`` takes it.
    """

    may_stop = False
    may_skip = True

    def __init__(self, driver: Driver | None = None, name: str = "cuda") -> None:
        self.name = name
        device_type = "cuda" if driver is None else driver.device_type
        self.device_types = frozenset({device_type})
        self._device_type, self._driver = device_type, driver
        self._images: Images | None = None
        self._unavailable: str | None = None
        self._lock = threading.Lock()

    def refusal(self, update: Update, program: Program) -> str | None:
        reason = ineligible(update, self._device_type)
        if reason is None and not program.is_flat:
            reason = _unfit_as_whole(update, program)
        reason = reason or unreadable(update, program.graph)
        if reason is None:
            found = self._kernel(program, update)
            reason = found if isinstance(found, str) else None
        return reason

    def kind(self, update: Update, program: Program) -> Hashable:
        weight = update.weight
        dtypes = tuple([number.dtype for number in update.numbers.values()])
        formats = (update.weight_format, *update.formats.items())
        return (weight.device, weight.dtype, dtypes, formats, is_sharded(weight), _places(update))

    def bind(self, program: Program, updates: Sequence[Update]) -> Binding:
        from gradstep.backends.cuda.self_check import bound

        kernel = self._kernel(program, updates[0])
        if isinstance(kernel, str):
            raise RuntimeError(f"{updates[0].name()} was not refused, but: {kernel}")
        return bound(kernel, updates)

    def images(self) -> Images:
        """The kernels of the driver's devices.

        Raises:
            Unavailable: the driver cannot be used.
        """
        with self._lock:
            if self._unavailable is not None:
                raise Unavailable(self._unavailable)
            if self._images is None:
                # The compiler is loaded, and the driver met, when the first tensor asks for it.
                from gradstep.backends.cuda.images import Images

                driver = self._driver
                if driver is None:
                    from gradstep.backends.cuda.nvidia import Nvidia

                    try:
                        driver = Nvidia()
                    except Unavailable as error:
                        self._unavailable = str(error)
                        raise
                self._images = Images(driver)
            return self._images

    def _kernel(self, program: Program, like: Update) -> DeviceKernel | str:
        """The kernel for weights like one, proved on its device; or why there is none."""
        weight = local(like.weight)
        index = weight.device.index or 0
        storage = STORAGE[weight.dtype][0]
        numbers = tuple((n, str(t.dtype)[6:]) for n, t in like.numbers.items())
        key: Any = (self, index, storage, like.weight_format, like.seed, numbers, _places(like))
        key = (*key, *like.formats.items())
        found: Any = program.kept.get(key)
        if found is None:
            try:
                found = self._made(program, like, storage, index, numbers)
            except (Unavailable, DriverError) as error:
                found = str(error)
            program.kept[key] = found
        return found  # type: ignore[no-any-return]

    def _made(
        self,
        program: Program,
        like: Update,
        storage: str,
        index: int,
        numbers: tuple[tuple[str, str], ...],
    ) -> DeviceKernel | str:
        images = self.images()
        from gradstep.backends.cuda.binding import DeviceKernel
        from gradstep.backends.cuda.self_check import difference

        holds = images.driver.holds
        there = [holds(number) for number in like.numbers.values()]
        if any(there) and not all(there):
            lies = dict(zip(like.numbers, there, strict=True))
            return f"of its states of one number some lie on the device and some do not: {lies}"
        hanging = _hanging_on_sums(program)
        if not any(there) and hanging:
            return (
                f"what becomes of its {hanging} hangs on sums, and it lies on the CPU; with "
                "capturable=True it begins on the device"
            )
        kernel = DeviceKernel(
            program,
            storage,
            like.formats,
            like.weight_format,
            like.seed,
            images,
            index,
            numbers,
            any(there),
        )
        return difference(kernel, images, program, like, hanging is None) or kernel


def _unfit_as_whole(update: Update, program: Program) -> str | None:
    """Why a rule that looks beyond single elements cannot update a weight; None if it can."""
    graph = program.graph
    if graph.calls_opaque:
        return "its rule calls a function that is not traced"
    if graph.sums_over_all:
        return "its rule sums over all parameters"
    if graph.shared:
        return "its rule has numbers that all parameters share"
    return ineligible_as_whole(update, graph)


def _hanging_on_sums(program: Program) -> str | None:
    """A state of one number that becomes what only the device knows; None if none does."""
    for name, _, after in program.contracted.numbers:
        if any(node.operation in REDUCTIONS for node in in_order([after])):
            return name
    return None


def _places(update: Update) -> tuple[Any, ...]:
    """Where states of one number lie."""
    return tuple([number.device for number in update.numbers.values()])
