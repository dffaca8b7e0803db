"""Access to the parts of aiohttp-session that have no public interface. No other module uses its private attributes.

aiohttp-session can neither change a session's identity nor reload it, and applications may hold on to the
:class:`~aiohttp_session.Session` object, so these functions change that object in place.
"""

from __future__ import annotations

from typing import Any

from aiohttp_session import AbstractStorage, Session
from cryptography.fernet import Fernet, MultiFernet


def is_changed(session: Session) -> bool:
    """Return True if ``session`` was changed and is to be saved."""
    return bool(session._changed)


def replace_contents(session: Session, fresh: Session) -> None:
    """Give ``session`` the contents and the identity of ``fresh``."""
    session._mapping = dict(fresh)
    session._identity, session._new = fresh.identity, fresh.new


def drop_identity(session: Session) -> None:
    """Have the storage give ``session`` a new identity when it is saved."""
    session._identity, session._new = None, True


def fernet_of(storage: AbstractStorage) -> Fernet | MultiFernet:
    """Return the key of a storage of encrypted cookies."""
    fernet: Fernet | MultiFernet = storage._fernet  # type: ignore[attr-defined]
    return fernet


def set_without_change(session: Session, key: str, value: Any) -> None:
    """Set ``session[key]`` without marking the session as changed."""
    session._mapping[key] = value
