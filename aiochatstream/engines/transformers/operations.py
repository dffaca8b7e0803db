"""Operations that a compiled model calls as they are: torch.compile does not look into them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_torch_library: Any = torch.library  # it has no types
_library = _torch_library.Library("aiochatstream", "DEF")


def register(signature: str, function: Callable[..., torch.Tensor], shape: Callable[..., torch.Tensor]) -> None:
    """Make ``function`` an operation ``torch.ops.aiochatstream.<name>``.

    :param signature: in torch's own language, such as ``double(Tensor number) -> Tensor``.
    :param shape: takes the same and returns an empty tensor like the function's, contiguous as it must be.
    """
    name = signature.partition("(")[0]
    _library.define(signature)
    _library.impl(name, function, "CompositeExplicitAutograd")
    _torch_library.register_fake(f"aiochatstream::{name}", shape, lib=_library)
