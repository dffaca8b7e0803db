"""Modules with states, for example those of Mamba and linear attention, in packed steps.

transformers calls them mixers: they mix the tokens of a sequence. The reference pass at load finds them, and their
forward pass is replaced: in packed steps, it computes each row with the row's own states.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from transformers import DynamicCache

from aiochatstream.engines.transformers.attention import running_step
from aiochatstream.engines.transformers.cpu.state_updates import with_updates
from aiochatstream.engines.transformers.custom_ops import register
from aiochatstream.engines.transformers.plain_forward import CACHE_NAMES
from aiochatstream.engines.transformers.state_cache import RowStates


class MixerProbe(DynamicCache):  # type: ignore[misc]
    """transformers' own cache of one sequence, which notes the modules that use it.

    outputs: result of each module that uses states.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.outputs: dict[nn.Module, Any] = {}
        self._attention: set[nn.Module] = set()
        self._running: list[nn.Module] = []

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Note the modules of ``model`` that use this cache."""
        hooks = []
        for module in model.modules():
            hooks.append(module.register_forward_pre_hook(self._begin))
            hooks.append(module.register_forward_hook(self._end))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def obstacle(self) -> str | None:
        """Reason why the modules with states cannot compute packed rows; None if they probably can."""
        for module, output in self.outputs.items():
            if module in self._attention:
                return f"{type(module).__name__} has both keys and states"
            if not isinstance(output, torch.Tensor):
                return f"{type(module).__name__} has a state and several results"
        return None

    def update(self, *arguments: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self._attention.add(self._running[-1])
        return super().update(*arguments, **options)  # type: ignore[no-any-return]

    def get_conv_state(self, *arguments: Any, **options: Any) -> torch.Tensor | None:
        return self._note(super().get_conv_state(*arguments, **options))

    def update_conv_state(self, *arguments: Any, **options: Any) -> torch.Tensor | None:
        return self._note(super().update_conv_state(*arguments, **options))

    def get_recurrent_state(self, *arguments: Any, **options: Any) -> torch.Tensor | None:
        return self._note(super().get_recurrent_state(*arguments, **options))

    def update_recurrent_state(self, *arguments: Any, **options: Any) -> torch.Tensor | None:
        return self._note(super().update_recurrent_state(*arguments, **options))

    def _note(self, state: torch.Tensor | None) -> torch.Tensor | None:
        self.outputs[self._running[-1]] = None
        return state

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        self._running.append(module)

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._running.pop()
        if module in self.outputs:
            self.outputs[module] = output


class PackedMixer:
    """Replaces the forward pass of a module with states.

    :param output: a result of the module.
    """

    def __init__(self, module: nn.Module, output: torch.Tensor) -> None:
        self._module, self._forward = module, module.forward
        self._replacement = vars(module).get("forward")  # for example accelerate's
        accepted = inspect.signature(module.forward).parameters
        self._cache_name = next(name for name in CACHE_NAMES if name in accepted)
        self.size, self.dtype = output.shape[-1], output.dtype
        self._number = next(_numbers)
        _mixers[self._number] = self
        self._updating: Callable[..., torch.Tensor] | None = None
        self._updated_kinds: frozenset[str] = frozenset()

    def install(self) -> None:
        """Replace the forward pass."""
        self._module.forward = self._call

    def remove(self) -> None:
        """Restore the original forward pass."""
        vars(self._module).pop("forward", None)
        if self._replacement is not None:
            self._module.forward = self._replacement

    @property
    def updates_in_slots(self) -> bool:
        """Return True if compiled functions update the states of decoding rows in their slots."""
        return self._updating is not None

    def use_updates(self) -> None:
        """Update the states of decoding rows in their slots, if the module calls a function that can be replaced."""
        if self._replacement is None:
            forward, self._updated_kinds = with_updates(self._module)
            self._updating = forward if self._updated_kinds else None

    def use_reference(self) -> None:
        """Update the states of all rows by transformers' functions."""
        self._updating = None

    def compute(self, hidden: torch.Tensor, states: RowStates) -> torch.Tensor:
        """Run the module's own forward pass on rows, [rows, tokens, size], with the same number of tokens."""
        forward = self._forward
        if self._updating is not None and hidden.shape[1] == 1:
            forward, states.kinds_in_slots = self._updating, self._updated_kinds
        result: torch.Tensor = forward(hidden, **{self._cache_name: states})
        return result

    def _call(self, *arguments: Any, **options: Any) -> Any:
        if running_step() is None:  # the application itself uses the model
            return self._forward(*arguments, **options)
        hidden = arguments[0] if arguments else options["hidden_states"]
        return torch.ops.aiochatstream.mix(hidden, self._number)


_numbers = count()
_mixers: WeakValueDictionary[int, PackedMixer] = WeakValueDictionary()


def _mix(hidden: torch.Tensor, number: int) -> torch.Tensor:
    """Compute all rows of the thread's step by the numbered mixer."""
    step = running_step()
    if step is None:
        raise RuntimeError("There is no step to compute in this thread.")
    return step.states.mix(_mixers[number].compute, hidden)


def _fake_mix(hidden: torch.Tensor, number: int) -> torch.Tensor:
    mixer = _mixers[number]
    return hidden.new_empty(*hidden.shape[:-1], mixer.size, dtype=mixer.dtype)


register("mix(Tensor hidden, int number) -> Tensor", _mix, _fake_mix)
