"""Tests of the search for the rows that cause errors, without a model."""

from __future__ import annotations

import pytest

from aiochatstream.engines.transformers.chunk import Chunk
from aiochatstream.engines.transformers.failed_rows import FailedRows, Plan
from aiochatstream.engines.transformers.request import Request
from aiochatstream.params import GenerationParams


def requests_of(count: int) -> list[Request]:
    return [Request([1] * 4, GenerationParams(max_new_tokens=9)) for _ in range(count)]


def plan_of(requests: list[Request], tokens: int = 4) -> Plan:
    """Return a plan that computes up to ``tokens`` tokens of each request."""
    return [
        (request, Chunk(row, request.computed_tokens, request.ids[request.computed_tokens : tokens]))
        for row, request in enumerate(requests)
    ]


def complete(requests: list[Request], tokens: int = 4) -> None:
    for request in requests:
        request.computed_tokens = tokens


def test_groups_are_halves_of_the_failed_rows_until_a_row_fails_alone() -> None:
    failed_rows, requests = FailedRows(), requests_of(5)
    assert failed_rows.next_group() == []
    assert failed_rows.add(plan_of(requests)) is None
    assert failed_rows.next_group() == requests[:2]
    complete(requests[:2])
    assert failed_rows.next_group() == requests[2:]
    assert failed_rows.add(plan_of(requests[2:])) is None
    assert failed_rows.next_group() == requests[2:3]
    assert failed_rows.add(plan_of(requests[2:3])) is requests[2]
    requests[2].fail(ZeroDivisionError())
    assert failed_rows.next_group() == requests[3:]
    complete(requests[3:])
    assert failed_rows.next_group() == []


def test_a_row_without_others_is_computed_twice() -> None:
    failed_rows, requests = FailedRows(), requests_of(1)
    for _ in range(2):
        assert failed_rows.add(plan_of(requests)) is None
        assert failed_rows.next_group() == requests
        complete(requests)
        assert failed_rows.next_group() == []
        complete(requests, 0)
    assert failed_rows.add(plan_of(requests)) is None
    assert failed_rows.add(plan_of(requests)) is requests[0]


def test_a_group_remains_until_all_tokens_of_its_failed_pass_are_computed() -> None:
    """A row with states may need several passes for them."""
    failed_rows, requests = FailedRows(), requests_of(2)
    failed_rows.add(plan_of(requests))
    for tokens in (0, 3):
        complete(requests[:1], tokens)
        assert failed_rows.next_group() == requests[:1]
    assert failed_rows.add(plan_of(requests[:1])) is requests[0]


@pytest.mark.parametrize("end", ["cancel", "fail"])
def test_finished_requests_are_in_no_group(end: str) -> None:
    failed_rows, requests = FailedRows(), requests_of(4)
    failed_rows.add(plan_of(requests))
    if end == "cancel":
        requests[0].cancelled = True
    else:
        requests[0].fail(ZeroDivisionError())
    assert failed_rows.next_group() == requests[1:2]


def test_rows_of_a_group_without_a_chunk_remain_in_it() -> None:
    failed_rows, requests = FailedRows(), requests_of(6)
    failed_rows.add(plan_of(requests))
    assert failed_rows.next_group() == requests[:3]
    failed_rows.add(plan_of(requests[:2]))
    complete(requests[:2])
    assert failed_rows.next_group() == requests[2:3]
