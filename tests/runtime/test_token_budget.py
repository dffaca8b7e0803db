"""Tokens that members share, and the queue for them."""

from __future__ import annotations

import pytest

from aiochatstream.runtime.token_budget import TokenBudget


def budget_of(size: int | None) -> TokenBudget[str]:
    budget: TokenBudget[str] = TokenBudget()
    budget.size = size
    return budget


def test_members_get_their_tokens_in_order_and_never_more_than_the_budget() -> None:
    budget = budget_of(10)
    for member, tokens in {"a": 6, "b": 5, "c": 1, "d": 9}.items():
        budget.enqueue(member, tokens)
    assert budget.grant() == ["a"]
    assert [budget.waiting.position(member) for member in "abcd"] == [0, 1, 2, 3]
    budget.discard("a")
    assert budget.grant() == ["b", "c"]
    budget.discard("b")
    assert budget.grant() == ["d"]
    assert len(budget.waiting) == 0


def test_a_member_that_leaves_the_queue_held_no_tokens() -> None:
    budget = budget_of(10)
    budget.enqueue("a", 8)
    budget.enqueue("b", 8)
    budget.enqueue("c", 2)
    assert budget.grant() == ["a"]
    budget.discard("b")
    budget.discard("unknown")
    assert budget.grant() == ["c"]
    budget.enqueue("d", 1)
    assert budget.grant() == []
    budget.discard("a")
    budget.discard("a")
    assert budget.grant() == ["d"]


def test_a_member_that_could_never_get_its_tokens_is_an_error() -> None:
    budget_of(10).check(10)
    budget_of(None).check(10**9)
    with pytest.raises(ValueError, match=r"^tokens: must be at most 10, not 11\.$"):
        budget_of(10).check(11)


def test_without_a_size_every_member_gets_its_tokens() -> None:
    budget = budget_of(None)
    budget.enqueue("a", 10**9)
    budget.enqueue("b", 10**9)
    assert budget.grant() == ["a", "b"]
