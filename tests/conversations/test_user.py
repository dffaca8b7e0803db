"""Users by id, and their conversations."""

from __future__ import annotations

import pytest

from aiochatstream import MemoryConversationStore
from aiochatstream.conversations.user import User, account_id
from aiochatstream.errors import ConversationChanged
from tests.conversations.samples import ONE, TWO

RANDOM = "k" * 43
"""An account name in the form of a random id."""


@pytest.mark.parametrize(
    ("account", "user_id"),
    [
        ("Ann", "Ann"),
        (RANDOM, f"account:{RANDOM}"),
        (f"account:{RANDOM}", f"account:account:{RANDOM}"),
    ],
)
def test_account_ids_differ_from_each_other_and_from_session_ids(account: str, user_id: str) -> None:
    assert account_id(account) == user_id


async def test_a_namespace_separates_conversations_of_the_same_name() -> None:
    store = MemoryConversationStore()
    plain, first, second = (User("Ann", store, namespace) for namespace in ("", "first", "second"))
    await first.save("main", ONE, loaded=await first.load("main"))
    assert await first.load("main") == ONE
    for user in (plain, second):
        assert (await user.load("main")).turns == ()
        assert not await user.forget("main")
    assert await first.forget("main")


async def test_save_expects_the_number_of_the_loaded_conversation() -> None:
    user = User("Ann", MemoryConversationStore())
    loaded = await user.load("main")
    assert (await user.save("main", ONE, loaded=loaded)).conversation == ONE
    with pytest.raises(ConversationChanged):
        await user.save("main", TWO, loaded=loaded)
    await user.save("main", TWO, loaded=ONE)
    assert await user.load("main") == TWO
