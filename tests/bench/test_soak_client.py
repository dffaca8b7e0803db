"""Comparison of a conversation with its expected contents, in the soak test."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest

from aiochatstream.bench.request import RequestOutcome, RequestRecord
from tests.processes import ROOT

if TYPE_CHECKING:
    from soak_client import ExpectedHistory


@pytest.fixture
def expected(monkeypatch: pytest.MonkeyPatch) -> ExpectedHistory:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    history: ExpectedHistory = importlib.import_module("soak_client").ExpectedHistory("c1")
    return history


def finished(outcome: RequestOutcome, status: int | None) -> RequestRecord:
    return RequestRecord(1, 1, 1, outcome=outcome, status=status)


def history(*texts: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for text in texts for role in ("user", "assistant")]


@pytest.mark.parametrize(
    ("outcome", "status", "differences"),
    [("aborted", None, 0), ("aborted", 200, 1), ("completed", 200, 1)],
    ids=["disconnected before any reply", "disconnected during the answer", "completed"],
)
def test_only_a_pending_message_may_remain_after_clearing(
    expected: ExpectedHistory, outcome: RequestOutcome, status: int | None, differences: int
) -> None:
    expected.record("first", finished("completed", 200))
    expected.record("last", finished(outcome, status))
    expected.clear()
    assert expected.differences([]) == []
    assert len(expected.differences(history("last"))) == differences
    assert len(expected.differences(history("first", "last"))) == differences + 1
