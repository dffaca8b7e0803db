"""Updates of the states of decoding rows in C++, compiled at the first use.

transformers' reference functions read and write a state many times. These read and write it once, in place.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from ctypes import CDLL, c_int64, c_void_p
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, Literal

import torch
from torch import nn

from aiochatstream.engines.transformers.cpu.compiler import compile_library
from aiochatstream.engines.transformers.state_cache import SlotStates

SOURCE = Path(__file__).with_name("state_updates.cpp")
CONVOLUTIONS = {torch.float32: "convolve_float32", torch.bfloat16: "convolve_bfloat16"}
ARGUMENTS = {
    "gated_delta_rule": [*[c_void_p] * 8, *[c_int64] * 10],
    "selective_state_update": [*[c_void_p] * 10, *[c_int64] * 11],
    **{name: [*[c_void_p] * 6, *[c_int64] * 7] for name in CONVOLUTIONS.values()},
}
"""Types of the parameters of each function in state_updates.cpp."""


def update_convolution(
    hidden_states: torch.Tensor,
    conv_state: SlotStates,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """Append inputs, [rows, channels, 1], to those of a causal convolution; return its results.

    :param weight: [channels, kernel size]

    Raise TypeError for dtypes, and ValueError for an activation, that are not supported.
    """
    states = conv_state.tensor
    if states.dtype not in CONVOLUTIONS or not hidden_states.dtype == weight.dtype == states.dtype:
        raise TypeError(f"dtypes: inputs {hidden_states.dtype}, weights {weight.dtype}, state {states.dtype}")
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"activation: must be silu or None, not {activation!r}.")
    if states.shape[2] < weight.shape[1] - 1:
        raise ValueError(f"conv_state: must have {weight.shape[1] - 1} inputs, not {states.shape[2]}.")
    inputs, weight = _flat_rows(hidden_states, states.dtype), weight.contiguous()
    rows, channels = inputs.shape
    result = inputs.new_empty(rows, channels, 1)
    _call(
        CONVOLUTIONS[states.dtype],
        (states, conv_state.slots, inputs, weight, None if bias is None else bias.to(states.dtype), result),
        (rows, channels, states.shape[2], weight.shape[1], inputs.stride(0), activation is not None),
    )
    return result


def update_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: SlotStates,
    use_qk_l2norm_in_kernel: bool = False,
    **options: Any,
) -> tuple[torch.Tensor, SlotStates]:
    """Update the states of the gated delta rule, and return the results, [rows, 1, heads, value size], and the states.

    :param query: and ``key``: [rows, 1, key heads, key size]
    :param value: [rows, 1, heads, value size]
    :param g: logarithms of the decay, and ``beta``: weights of the changes, both [rows, 1, heads].
    """
    rows, _, heads, value_size = value.shape
    key_heads, key_size = key.shape[2:]
    if heads % key_heads:
        raise ValueError(f"value: must have a multiple of {key_heads} heads, not {heads}.")
    queries, keys, values = (_flat_rows(part) for part in (query, key, value))
    gates, betas = (part.float().contiguous() for part in (g, beta))
    result = values.new_empty(rows, 1, heads, value_size)
    _call(
        "gated_delta_rule",
        (_float_states(initial_state), initial_state.slots, queries, keys, values, gates, betas, result),
        (rows, heads, key_heads, key_size, value_size, *(part.stride(0) for part in (queries, keys, values))),
        use_qk_l2norm_in_kernel,
    )
    return result.to(query.dtype), initial_state


def update_selective_state(
    state: SlotStates,
    hidden_states: torch.Tensor,
    steps: torch.Tensor,
    rates: torch.Tensor,
    input_maps: torch.Tensor,
    output_maps: torch.Tensor,
    skips: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    z: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """Update the states of Mamba 2, and return the results, [rows, heads, head size].

    :param hidden_states: inputs, [rows, heads, head size].
    :param steps: time steps, [rows, heads, head size], expanded from those of each head.
    :param rates: [heads, head size, state size], ``skips`` and ``dt_bias``: [heads, head size], also expanded.
    :param input_maps: and ``output_maps``: [rows, groups, state size].
    :param z: gates of the results, [rows, heads, head size]; None for none.

    Raise NotImplementedError if parameters of heads are not expanded.
    """
    of_heads = [None if part is None else _of_heads(part, 1) for part in (rates, skips, dt_bias)]
    flat = [_flat_rows(part) for part in (hidden_states, _of_heads(steps, 2), input_maps, output_maps)]
    result = flat[0].new_empty(hidden_states.shape)
    _call(
        "selective_state_update",
        (_float_states(state), state.slots, *flat, *of_heads, result),
        (*result.shape[:2], input_maps.shape[1], result.shape[2], input_maps.shape[2], *(p.stride(0) for p in flat)),
        dt_softplus,
    )
    if z is not None:
        result *= nn.functional.silu(z.float())
    return result.to(hidden_states.dtype)


Kind = Literal["conv", "recurrent"]

UPDATES: dict[str, tuple[Kind, Callable[..., Any]]] = {
    "causal_conv1d_update": ("conv", update_convolution),
    "torch_recurrent_gated_delta_rule": ("recurrent", update_delta_rule),
    "mamba2_selective_state_update": ("recurrent", update_selective_state),
}
"""Kind of the states, and replacement of transformers' functions, by the name that its modules call. Replacements have
the same parameters, but the states are :class:`SlotStates`.
"""


def with_updates(module: nn.Module) -> tuple[Callable[..., Any], frozenset[Kind]]:
    """Return the forward pass of ``module`` with functions of :data:`UPDATES`, and the kinds of states they update.

    The module, and other modules of its class, remain unchanged.
    """
    forward = inspect.unwrap(type(module).forward)
    updates = {name: UPDATES[name] for name in forward.__code__.co_names if name in UPDATES}
    scope = forward.__globals__ | {name: update for name, (_, update) in updates.items()}
    function = FunctionType(forward.__code__, scope, forward.__name__, forward.__defaults__, forward.__closure__)
    function.__kwdefaults__ = forward.__kwdefaults__
    return MethodType(function, module), frozenset(kind for kind, _ in updates.values())


def _call(name: str, parts: tuple[torch.Tensor | None, ...], sizes: tuple[int, ...], *options: bool) -> None:
    pointers = (None if part is None else part.data_ptr() for part in parts)
    getattr(_library(), name)(*pointers, torch.get_num_threads(), *sizes, *options)


@functools.cache
def _library() -> CDLL:
    library = compile_library(SOURCE)
    for name, types in ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, None
    return library


def _flat_rows(part: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return [rows, numbers], with adjacent numbers in a row."""
    flat = part.to(dtype).flatten(1)
    return flat if flat.stride(1) == 1 else flat.contiguous()


def _of_heads(part: torch.Tensor, dimensions: int) -> torch.Tensor:
    """Return the first ``dimensions`` dimensions of a tensor that is expanded from them."""
    for dimension in range(part.dim() - 1, dimensions - 1, -1):
        if part.shape[dimension] > 1 and part.stride(dimension):
            raise NotImplementedError("parameters of single channels of a selective state")
        part = part.select(dimension, 0)
    return part.float().contiguous()


def _float_states(states: SlotStates) -> torch.Tensor:
    if states.tensor.dtype != torch.float32:
        raise TypeError(f"states: must be of float32, not {states.tensor.dtype}.")
    return states.tensor
