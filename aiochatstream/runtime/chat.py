"""Chat with one engine: turns of conversations, from the message to the saved answer."""

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
from aiochatstream.runtime.engine_runtime import Runtime
from aiochatstream.runtime.events import Ended, Event, Failed, Text
from aiochatstream.runtime.running_turn import RunningTurn
from aiochatstream.runtime.served_model import RuntimeConfig, affinity_of
from aiochatstream.runtime.turn_request import TurnRequest, check_turn

Position = Literal["begin", "mid", "end"]
"""Position of a piece in the answer of :meth:`Chat.handle_console_input`."""

SWEEP_SECONDS = 60.0

MAX_PROMPT_TEXTS = 16
"""Maximum number of waiting calls of :meth:`Chat.prompt_text`."""


class Chat(Runtime):
    """Turns of conversations with one engine."""

    def __init__(self, config: RuntimeConfig) -> None:
        super().__init__(config)
        self._prompt_text_lock = asyncio.Lock()
        self._prompt_texts = 0
        self._memory = MemoryConversationStore()
        self._console_user = User(random_id(), self._memory)  # no account has this id
        self.metrics.watch_sessions(lambda: len(self._memory), lambda: self._memory.bytes)
        self._background.append(self._sweep)

    def running_turn(self, user: User, name: str) -> RunningTurn | None:
        """Return the running turn of a conversation in this process."""
        return self._turns.get(user.id, name)

    def queue_positions(self, user: User) -> dict[str, int]:
        """Return the queue positions of the waiting turns of ``user``, by conversation; 1 is next."""
        turns = self._turns.of_user(user.id)
        return {name: turn.position for name, turn in turns.items() if turn.position}

    async def prompt_text(self, conversation: Conversation, message: str, *overrides: ParamOverrides | None) -> str:
        """Return the prompt in which ``message`` follows ``conversation``; for an engine without a tokenizer, as JSON.

        :param overrides: parameters of the user.

        One prompt is made at a time, so that a thread is free for the prompts of answers. Raise
        :class:`~aiochatstream.errors.TooManyRequests` if too many wait.
        """
        self._check_chats()
        chat_prompt = self._prompt_class()
        chat_prompt.conversation, chat_prompt.message = conversation, message
        params = self.override(*overrides)

        def text() -> str:
            # the request may have limited its answer to fewer tokens
            minimal = params.model_copy(update={"max_new_tokens": 1})
            prompt = self._make_prompt(chat_prompt, minimal)
            if chat_prompt.tokenizer is None:
                return json.dumps(prompt.messages, ensure_ascii=False)
            return chat_prompt.create_prompt()

        if self._prompt_texts >= MAX_PROMPT_TEXTS:
            raise TooManyRequests("Too many requests for prompts are waiting.")
        self._prompt_texts += 1
        try:
            async with self._prompt_text_lock:
                return await self._run_in_prompt_thread(text)
        finally:
            self._prompt_texts -= 1

    async def handle_console_input(self, text: str) -> AsyncGenerator[tuple[str, str, Position], None]:
        """Answer ``text`` in the only conversation of a program without users.

        Yield ``(response_text, updated_text, position)``: the whole answer so far, its new text, and ``begin`` for the
        first text, ``mid`` for the next ones and ``end`` for the last item, without new text. Each answer has one
        ``begin`` and one ``end``, even an empty one. Wait for the model if it is still loading::

            async with chat_stream:
                async for response_text, updated_text, position in chat_stream.handle_console_input("Hello"):
                    print(updated_text, end="", flush=True)

        Closing the generator stops the answer; its text so far is saved as interrupted.

        Raise :class:`~aiochatstream.errors.ChatStreamError` if the answer fails, the error of loading the model, and
        RuntimeError outside an ``async with``.
        """
        await self.wait_ready()
        if not isinstance(text, str) or not text.strip():
            raise InvalidValue("text: must be a non-empty string.")
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
        """Begin a turn and yield its events. Closing the generator stops the answer."""
        turn = await self.begin_turn(user, name, TurnRequest(message), overrides, system=system)
        try:
            event = None
            while not isinstance(event, Ended | Failed):
                event = await turn.next_event()
                yield event
        finally:
            turn.stop("stopped")  # no effect after the end
            await turn.wait_ended()

    async def begin_turn(
        self, user: User, name: str, request: TurnRequest, *overrides: ParamOverrides | None, system: str = ""
    ) -> RunningTurn:
        """Hold the conversation, reserve a slot or a place in the queue, make the prompt, and start the turn.

        :param overrides: parameters of the user and of the request; the last one has precedence.
        :param system: system prompt that replaces the prompt class's system prompt; empty for no change.

        Raise :class:`~aiochatstream.errors.ChatStreamError` if the request is refused; then nothing has changed.
        """
        self.check_ready()
        self._check_chats()
        chat_prompt = self._prompt_class()
        if system:
            chat_prompt.set_system(system)
        params = self.override(*overrides, stop=chat_prompt.stop_strings())
        turn = await self._begin(user, name)
        ticket: Ticket | None = None
        try:
            loaded = await user.load(name)
            turn_input = request.resolve(loaded)
            ticket = await self.admission.reserve()
            before = loaded.begin(turn.message_id)
            chat_prompt.conversation, chat_prompt.message = turn_input.base.begin(turn.message_id), turn_input.message
            chat_prompt.open_answer, chat_prompt.open_thinking = turn_input.prefix, turn_input.prefix_thinking
            if all(override is None or override.seed is None for override in overrides):
                params = self._with_seed(params)
            prompt = await self._prompt_of(chat_prompt, params)
            params = self._shorten_answer(params, prompt)
            await user.accept_turn(name, before)
            self.check_ready()  # a shutdown may have begun in the meantime
        except BaseException:
            if ticket is not None:
                ticket.release()
            await self._turns.cancel(user.id, name)
            raise
        has_template_kwargs = any(override is not None and override.chat_template_kwargs for override in overrides)
        job = self._job(
            self._with_owner(
                prompt, user.owner, affinity_of(user.owner, name), has_server_prefix=not (system or has_template_kwargs)
            ),
            params,
            ticket,
            chat_prompt.get_replacement_when_output(),
            before=before,
            base=chat_prompt.conversation,
            user_text=turn_input.message,
            prefix=turn_input.prefix,
            prefix_thinking=turn_input.prefix_thinking,
            save=functools.partial(user.save, name, loaded=loaded),
            save_unanswered=functools.partial(user.save_unanswered, name, before, loaded=loaded),
        )
        self._turns.start(user.id, name, job)
        return turn

    async def clear(self, user: User, name: str) -> bool:
        """Delete the turns of a conversation, and stop its running answer. Return True if there were any."""
        discarded = await self.stop_turn(user, name, "discarded")
        try:
            await self._begin(user, name)  # other turns of the conversation wait
        except ConversationBusy:
            raise ConversationBusy(
                "The running answer is being discarded but has not stopped yet. Try again later."
            ) from None
        try:
            self._forget_prompts(user)
            return await user.forget(name) or discarded is not None
        finally:
            await self._turns.cancel(user.id, name)

    async def rewrite(
        self, user: User, name: str, change: Callable[[Conversation], Conversation], *, if_turn: int | None = None
    ) -> SaveResult:
        """Change a conversation without generating an answer. The response must not have begun.

        :param change: returns the changed conversation. If it raises, nothing changes.
        :param if_turn: turn number that the client has seen; None accepts any.

        Raise ConversationBusy while an answer is running, and ConversationChanged.
        """
        await self._begin(user, name)
        try:
            loaded = await user.load(name)
            check_turn(loaded, if_turn)
            changed = change(loaded).begin(str(uuid.uuid4()))
            self._forget_prompts(user)
            return await user.rewrite(name, changed, loaded=loaded)
        finally:
            await self._turns.cancel(user.id, name)

    async def stop_turn(self, user: User, name: str, reason: StopRequest) -> str | None:
        """Stop the answer of a conversation and wait for its end, at most 2 s.

        Return its message id; None if no answer is running, neither here nor in a process that shares the store.
        """
        turn = self._turns.get(user.id, name)
        if turn is None:
            return await user.stop_elsewhere(name, reason)
        turn.stop(reason)
        await turn.wait_ended()
        return turn.message_id

    def _forget_prompts(self, user: User) -> None:
        """Have the engine drop its cached prompts of the user, including prompts of other conversations."""
        for owner in user.owners:
            self.engine.forget(owner)

    async def _begin(self, user: User, name: str) -> RunningTurn:
        return await self._turns.begin(user.id, name, functools.partial(user.hold, name))

    async def _sweep(self) -> None:
        """Drop idle conversations regularly, even without requests."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._memory.sweep()
