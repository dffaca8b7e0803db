"""Errors of loading, each in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from aiochatstream.extras import MissingExtra

UNKNOWN_TYPE = re.compile(r"has model type `(.+?)` but Transformers does not recognize")


@contextmanager
def explain_load_errors(source: str, revision: str | None = None) -> Iterator[None]:
    """Replace the errors of transformers and of the HuggingFace Hub, which have many lines, by one sentence.

    Raise FileNotFoundError for an unknown model, ValueError for an unsuitable one, MissingExtra if a package is
    missing, and other OSErrors.
    """
    try:
        yield
    except MissingExtra:
        raise
    except Exception as error:
        explanation = _explanation(error, source, revision)
        if explanation is None:
            raise
        raise explanation from error


def _explanation(error: Exception, source: str, revision: str | None) -> Exception | None:
    """Return the error to raise; None to raise ``error`` itself."""
    causes = list(_causes(error))

    def is_caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    text = str(error)
    if is_caused_by(GatedRepoError):
        return PermissionError(
            f"{source} requires consent to its license: accept it on https://huggingface.co/{source} "
            "and log in with: hf auth login"
        )
    if is_caused_by(RepositoryNotFoundError, HFValidationError):
        return FileNotFoundError(
            f"There is no model {source}, neither as a folder nor on huggingface.co (for a private one, "
            "log in with: hf auth login)."
        )
    if is_caused_by(RevisionNotFoundError):
        return ValueError(f"revision: {source} has no branch, tag or commit {revision}.")
    if is_caused_by(LocalEntryNotFoundError, OfflineModeIsEnabled):
        return OSError(f"{source} is not in the cache folder, and huggingface.co cannot be reached.")
    if isinstance(error, ValueError) and "trust_remote_code" in text:
        return ValueError(f"{source} contains Python code. Review the code, and allow it with trust_remote_code.")
    if unknown := UNKNOWN_TYPE.search(text):
        return ValueError(
            f"{source} has the model type {unknown[1]}, which the installed transformers does not support."
        )
    if isinstance(error, ImportError):
        return MissingExtra(f"{source} cannot be loaded: {' '.join(text.split())}")
    if isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno is None):
        kind = ValueError if isinstance(error, ValueError) else OSError
        return kind(f"{source} cannot be loaded: {text.strip().partition(chr(10))[0]}")
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
