"""What wrappers share that keep a tensor a weight from step to step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradstep.compose.wrapper import Wrapper, without


class Remembering(Wrapper):
    """Keeps a tensor a weight, of its shape, which is saved with the optimizer's states."""

    #: Its name among the states; one of ``OF_WRAPPERS``.
    _memory_name = ""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._memory: dict[Tensor, Tensor] = {}

    def _save(self) -> dict[str, Any]:
        saved = super()._save()
        for key, p in enumerate(self._weights()):
            if p in self._memory:
                own = {self._memory_name: self._memory[p].clone()}
                saved["state"][key] = {**saved["state"].get(key, {}), **own}
        return saved

    def _load(self, state_dict: dict[str, Any], strict: bool) -> None:
        state_dict, memory = without(state_dict, self._memory_name)
        super()._load(state_dict, strict)
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        self._memory = {
            p: memory[key].to(p, copy=True)
            for key, p in zip(keys, self._weights(), strict=True)
            if key in memory
        }
