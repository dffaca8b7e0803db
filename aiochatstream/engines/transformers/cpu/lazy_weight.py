"""Weights that are computed only when their numbers are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map


class LazyWeight(torch.Tensor):
    """A weight that packed layers do not store. Models read its dtype or a row in each step.

    :param size: number of rows and columns.
    :param compute: returns the weight.
    :param take: returns the row with an index.
    """

    compute: Callable[[], torch.Tensor]
    take_row: Callable[[int], torch.Tensor] | None

    @staticmethod
    def __new__(
        cls,
        size: tuple[int, int],
        dtype: torch.dtype,
        compute: Callable[[], torch.Tensor],
        take: Callable[[int], torch.Tensor] | None = None,
    ) -> LazyWeight:
        make: Any = torch.Tensor._make_wrapper_subclass
        weight: LazyWeight = make(cls, size, dtype=dtype)
        weight.compute, weight.take_row = compute, take
        return weight

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        first = args[0] if args else None
        if function is torch.ops.aten.select.int and isinstance(first, cls) and first.take_row and args[1] == 0:
            return first.take_row(args[2] % first.shape[0])
        return function(*tree_map(_compute, args), **tree_map(_compute, kwargs or {}))


def _compute(argument: Any) -> Any:
    return argument.compute() if isinstance(argument, LazyWeight) else argument
