"""Custom torch operators, which torch.compile does not trace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_torch_library: Any = torch.library  # untyped
_library = _torch_library.Library("aiochatstream", "DEF")


class _LatestError(threading.local):
    error: Exception | None = None


_latest = _LatestError()


@contextmanager
def original_errors() -> Iterator[None]:
    """Raise an operator's own exception in place of the RuntimeError with which compiled code replaces it."""
    _latest.error = None
    try:
        yield
    except RuntimeError as error:
        if _latest.error is None or error is _latest.error:
            raise
        raise _latest.error from None
    finally:
        _latest.error = None


def register(signature: str, function: Callable[..., torch.Tensor], fake: Callable[..., torch.Tensor]) -> None:
    """Register ``function`` as the operator ``torch.ops.aiochatstream.<name>``.

    :param signature: schema in torch's notation, for example ``double(Tensor number) -> Tensor``.
    :param fake: function with the same parameters that returns an empty, contiguous tensor of the result's shape.
    """

    def operator(*arguments: Any) -> torch.Tensor:
        try:
            return function(*arguments)
        except Exception as error:
            _latest.error = error
            raise

    name = signature.partition("(")[0]
    _library.define(signature)
    _library.impl(name, operator, "CompositeExplicitAutograd")
    _torch_library.register_fake(f"aiochatstream::{name}", fake, lib=_library)
