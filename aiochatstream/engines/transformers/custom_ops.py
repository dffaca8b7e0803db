"""Operations that a compiled model calls as they are: torch.compile does not look into them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_torch_library: Any = torch.library  # it has no types
_library = _torch_library.Library("aiochatstream", "DEF")


class _Thread(threading.local):
    error: Exception | None = None


_thread = _Thread()


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise what an operation raised. Compiled code only tells that one did."""
    _thread.error = None
    try:
        yield
    except RuntimeError as error:
        if _thread.error is None or error is _thread.error:
            raise
        raise _thread.error from None
    finally:
        _thread.error = None


def register(signature: str, function: Callable[..., torch.Tensor], shape: Callable[..., torch.Tensor]) -> None:
    """Make ``function`` an operation ``torch.ops.aiochatstream.<name>``.

    :param signature: in torch's own language, such as ``double(Tensor number) -> Tensor``.
    :param shape: takes the same and returns an empty tensor like the function's, contiguous as it must be.
    """

    def called(*arguments: Any) -> torch.Tensor:
        try:
            return function(*arguments)
        except Exception as error:
            _thread.error = error
            raise

    name = signature.partition("(")[0]
    _library.define(signature)
    _library.impl(name, called, "CompositeExplicitAutograd")
    _torch_library.register_fake(f"aiochatstream::{name}", shape, lib=_library)
