"""What a client of the soak holds against a server, and what it does not."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from aiochatstream.bench.request import Record
from tests.processes import ROOT


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("soak_client").Memory("c1")


def ended(outcome: str, status: int | None) -> Record:
    record = Record(1, 1, 1, "plain")
    record.outcome, record.status = outcome, status  # type: ignore[assignment]
    return record


def history(*texts: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for text in texts for role in ("user", "assistant")]


@pytest.mark.parametrize(
    ("outcome", "status", "wrong"),
    [("aborted", None, 0), ("aborted", 200, 1), ("completed", 200, 1)],
    ids=["hung up before any reply", "hung up within the answer", "answered"],
)
def test_only_what_the_server_may_come_to_later_may_be_there_after_clearing(
    memory: Any, outcome: str, status: int | None, wrong: int
) -> None:
    memory.note("first", ended("completed", 200))
    memory.note("last", ended(outcome, status))
    memory.forget()
    assert memory.compare([]) == []
    assert len(memory.compare(history("last"))) == wrong
    assert len(memory.compare(history("first", "last"))) == wrong + 1
