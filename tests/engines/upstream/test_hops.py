"""Tests for the guard against loops of servers."""

from __future__ import annotations

import asyncio

import pytest

from aiochatstream.engines.upstream import hops
from aiochatstream.errors import LoopDetected

OWN, OTHER = "0123456789abcdef", "fedcba9876543210"


async def test_a_server_adds_its_id_to_those_of_the_servers_before_it() -> None:
    hops.receive(OTHER, OWN)
    assert hops.outgoing(OWN) == f"{OTHER}, {OWN}"


async def test_a_request_without_the_header_begins_anew_in_the_same_task() -> None:
    hops.receive(OTHER, OWN)
    hops.receive(None, OWN)
    assert hops.outgoing(OWN) == OWN


async def test_tasks_of_a_request_know_its_hops() -> None:
    hops.receive(OTHER, OWN)

    async def turn() -> str:
        return hops.outgoing(OWN)

    assert await asyncio.create_task(turn()) == f"{OTHER}, {OWN}"


def test_the_second_pass_is_refused() -> None:
    with pytest.raises(LoopDetected):
        hops.receive(f"{OWN}, {OTHER}", OWN)


def test_a_request_passes_at_most_three_servers() -> None:
    ids = [hops.new_server_id() for _ in range(hops.MAX_HOPS)]
    hops.receive(", ".join(ids[:2]), OWN)
    with pytest.raises(LoopDetected, match="passed 3 servers"):
        hops.receive(", ".join(ids), OWN)


def test_a_server_that_forwards_nothing_accepts_any_number_of_hops() -> None:
    hops.receive(", ".join(hops.new_server_id() for _ in range(9)), None)


@pytest.mark.parametrize("header", ["", "3", "x" * 10_000, "0123, ,", "\u2028"])
def test_anything_else_than_ids_is_ignored(header: str) -> None:
    hops.receive(header, OWN)
    assert hops.outgoing(OWN) == OWN
