"""A chat with one engine: turns of conversations, from the user's message to the answer that is kept. Knows no HTTP."""

from __future__ import annotations

import asyncio
import functools
import json
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Literal

from aiochatstream.conversations.conversation import Conversation
from aiochatstream.conversations.memory_store import MemoryConversationStore
from aiochatstream.conversations.random_ids import random_id
from aiochatstream.conversations.store import StopRequest
from aiochatstream.conversations.user import SaveResult, User
from aiochatstream.errors import ConversationBusy, InvalidValue, TooManyRequests
from aiochatstream.params import ParamOverrides
from aiochatstream.runtime.admission import Ticket
from aiochatstream.runtime.engine_runtime import Runtime, RuntimeConfig
from aiochatstream.runtime.events import Ended, Event, Failed, Text
from aiochatstream.runtime.turn_request import TurnRequest, check_turn
from aiochatstream.runtime.turns import RunningTurn

Position = Literal["begin", "mid", "end"]
"""Where in an answer a piece of :meth:`Chat.handle_console_input` stands."""

SWEEP_SECONDS = 60.0

MAX_PROMPT_TEXTS = 16
"""Prompts to read that may be waited for."""


class Chat(Runtime):
    """Takes turns of conversations."""

    def __init__(self, setting: RuntimeConfig) -> None:
        super().__init__(setting)
        self._one_prompt_text = asyncio.Lock()
        self._prompt_texts = 0
        self._memory = MemoryConversationStore()
        self._console_user = User(random_id(), self._memory)  # no account of an app is called that
        self.metrics.watch_sessions(lambda: len(self._memory), lambda: self._memory.bytes)
        self._chores.append(self._sweep)

    def running_turn(self, user: User, name: str) -> RunningTurn | None:
        """The turn of this conversation that is under way in this process."""
        return self._turns.get(user.id, name)

    def queue_positions(self, user: User) -> dict[str, int]:
        """Where the turns of ``user`` that wait stand in the queue, by conversation; 1 is next."""
        turns = self._turns.of_user(user.id)
        return {name: turn.position for name, turn in turns.items() if turn.position}

    async def prompt_text(self, told: Conversation, message: str) -> str:
        """Return the prompt in which ``message`` follows ``told``; for an engine without a tokenizer, as JSON.

        One at a time is made, so that the prompts of answers have a thread. Raises
        :class:`~aiochatstream.errors.TooManyRequests` if too many wait.
        """
        prompt = self._prompt_class()
        prompt.conversation, prompt.message = told, message

        def text() -> str:
            # the request may have asked for fewer tokens than usual
            least = self.params.model_copy(update={"max_new_tokens": 1})
            made = self._make_prompt(prompt, least)
            if prompt.tokenizer is None:
                return json.dumps(made.messages, ensure_ascii=False)
            return prompt.create_prompt()

        if self._prompt_texts >= MAX_PROMPT_TEXTS:
            raise TooManyRequests("Too many prompts are asked for at once.")
        self._prompt_texts += 1
        try:
            async with self._one_prompt_text:
                return await self._in_prompt_thread(text)
        finally:
            self._prompt_texts -= 1

    async def handle_console_input(self, text: str) -> AsyncGenerator[tuple[str, str, Position], None]:
        """Answer ``text`` in the one conversation that a program without users has with this object.

        Yields ``(response_text, updated_text, position)``: the whole answer so far, what of it is new, and ``begin``
        with the first text, ``mid``, and at last ``end``, with no new text. Each answer has one ``begin`` and one
        ``end``, also where it is empty. Waits for the model where it is still being loaded::

            async with chat_stream:
                async for response_text, updated_text, position in chat_stream.handle_console_input("Hello"):
                    print(updated_text, end="", flush=True)

        Closing the generator stops the answer; what there is of it joins the conversation as interrupted.

        Raises :class:`~aiochatstream.errors.ChatStreamError` where there is no whole answer, what loading the model
        raised, and RuntimeError where the ``async with`` was never entered.
        """
        await self.wait_ready()
        if not isinstance(text, str) or not text.strip():
            raise InvalidValue("text: must be a string that is not empty.")
        whole = ""
        async with aclosing(self.answer(self._console_user, "main", text)) as events:
            async for event in events:
                if isinstance(event, Text):
                    position: Position = "mid" if whole else "begin"
                    whole += event.text
                    yield whole, event.text, position
                elif isinstance(event, Failed):
                    raise event.error
        if not whole:
            yield "", "", "begin"
        yield whole, "", "end"

    async def answer(
        self, user: User, name: str, message: str | None, overrides: ParamOverrides | None = None, system: str = ""
    ) -> AsyncGenerator[Event, None]:
        """:meth:`begin_turn`, and what then happens, to the end. Closing the generator stops the answer."""
        turn = await self.begin_turn(user, name, TurnRequest(message), overrides, system=system)
        try:
            event = None
            while not isinstance(event, Ended | Failed):
                event = await turn.next_event()
                yield event
        finally:
            turn.stop("stopped")  # no effect on a turn that has ended
            await turn.wait_ended()

    async def begin_turn(
        self, user: User, name: str, ask: TurnRequest, *overrides: ParamOverrides | None, system: str = ""
    ) -> RunningTurn:
        """Take the conversation, a slot or a place in the queue, and make the prompt; then set the turn going.

        :param ask: what is to be answered.
        :param overrides: what the user and the request have set; the last one counts.
        :param system: what the model is told first, in place of what the prompt class says; empty leaves that.

        Raises what the request is to be refused with; then nothing has changed.
        """
        self.check_ready()
        prompt = self._prompt_class()
        if system:
            prompt.set_system(system)
        params = self.override(*overrides, stop=tuple(prompt.get_stop_strs()))
        turn = await self._take(user, name)
        ticket: Ticket | None = None
        try:
            loaded = await user.load(name)
            task = ask.of(loaded)
            ticket = self.admission.reserve()
            before = loaded.begin(turn.message_id)
            prompt.conversation, prompt.message = task.base.begin(turn.message_id), task.message
            prompt.open_answer = task.begun
            if all(one is None or one.seed is None for one in overrides):
                params = params.model_copy(update={"seed": self._seeds.getrandbits(63)})
            made = await self._in_prompt_thread(self._make_prompt, prompt, params)
            await user.accept_turn(name, before)
            self.check_ready()  # a shutdown may have begun meanwhile
        except BaseException:
            if ticket is not None:
                ticket.release()
            await self._turns.give_up(user.id, name)
            raise
        job = self._job(
            self._own(made, user.owner, own_system=not system),
            params,
            ticket,
            prompt.get_replacement_when_output(),
            before=before,
            base=prompt.conversation,
            user_text=task.message,
            begun=task.begun,
            save=functools.partial(user.save, name, loaded=loaded),
            leave=functools.partial(user.leave, name, before, loaded=loaded),
        )
        self._turns.start(user.id, name, job)
        return turn

    async def clear(self, user: User, name: str) -> bool:
        """Forget a conversation, a running answer too; tell whether there was something to forget."""
        discarded = await self.stop_turn(user, name, "discarded")
        try:
            await self._take(user, name)  # no new turn begins from what is being forgotten
        except ConversationBusy:
            raise ConversationBusy(
                "The running answer is being discarded, but has not stopped yet. Send again."
            ) from None
        try:
            self._forget_prompts(user)
            return await user.forget(name) or discarded is not None
        finally:
            await self._turns.give_up(user.id, name)

    async def rewrite(
        self, user: User, name: str, change: Callable[[Conversation], Conversation], *, if_turn: int | None = None
    ) -> SaveResult:
        """Change a conversation without an answer. The response must not have begun.

        :param change: makes of the conversation what it is to be; what it raises is raised, and nothing changes.
        :param if_turn: the turn number that the client has seen; None is any.

        Raises ConversationBusy while an answer is running, and ConversationChanged.
        """
        await self._take(user, name)
        try:
            loaded = await user.load(name)
            check_turn(loaded, if_turn)
            changed = change(loaded).begin(str(uuid.uuid4()))
            self._forget_prompts(user)
            return await user.rewrite(name, changed, loaded=loaded)
        finally:
            await self._turns.give_up(user.id, name)

    async def stop_turn(self, user: User, name: str, reason: StopRequest) -> str | None:
        """Stop the answer of this conversation and wait for its end, at most 2 s.

        Returns its message id; None where no answer is running, here or where the conversation's store can tell of it.
        """
        turn = self._turns.get(user.id, name)
        if turn is None:
            return await user.stop_elsewhere(name, reason)
        turn.stop(reason)
        await turn.wait_ended()
        return turn.message_id

    def _forget_prompts(self, user: User) -> None:
        """Have the engine drop what it keeps of the user's prompts, those of other conversations too."""
        for owner in user.owners:
            self.engine.forget(owner)

    async def _take(self, user: User, name: str) -> RunningTurn:
        return await self._turns.take(user.id, name, functools.partial(user.hold, name))

    async def _sweep(self) -> None:
        """Let go of conversations that nobody came back to, also where nobody comes at all."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._memory.sweep()
