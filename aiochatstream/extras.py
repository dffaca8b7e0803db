"""Packages that only some parts of aiochatstream need, installed as extras."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtra(ImportError):
    """A package of an extra is not installed."""


def install_command(extra: str) -> str:
    """Return the command that installs the packages of ``extra``."""
    return f"pip install 'aiochatstream[{extra}]'"


@contextmanager
def requires_extra(extra: str) -> Iterator[None]:
    """Raise MissingExtra if an import in the block finds a package of ``extra`` missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", __package__):
            raise
        message = f"The package {package} is missing. Install it with: {install_command(extra)}"
        raise MissingExtra(message, name=error.name) from error
