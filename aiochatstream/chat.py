"""A chat with one engine: admission, prompts, engine and turns together, from start to end. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import logging
import random
import uuid
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from aiochatstream.admission import Admission, Ticket
from aiochatstream.ask import Ask, check_turn
from aiochatstream.conversation import Conversation
from aiochatstream.engines import DeltaStream, Engine, Prompt
from aiochatstream.engines.replacements import replaced
from aiochatstream.errors import ContextLengthExceeded, ConversationBusy, Draining, InvalidValue, Starting
from aiochatstream.messages import Locale, messages_of
from aiochatstream.metrics import Metrics
from aiochatstream.params import GenerationParams, Limits, ParamOverrides
from aiochatstream.prompts import CHARS_PER_TOKEN, AbstractChatPrompt, GivenMessages, GivenTexts, fit
from aiochatstream.sessions import Kept, MemoryConversationStore, StopRequest, User, random_id
from aiochatstream.threads import in_daemon_thread
from aiochatstream.turns import ENDING_SECONDS, Ended, Event, Failed, Job, RunningTurn, Text, Turns

State = Literal["starting", "ready", "draining", "failed"]

Position = Literal["begin", "mid", "end"]
"""Where in an answer a piece of :meth:`Chat.handle_console_input` stands."""

Result = TypeVar("Result")

DEFAULT_CONTEXT_LEN = 2048

SWEEP_SECONDS = 60.0

PROMPT_THREADS = 2
"""Threads for the short jobs of rendering and tokenising prompts."""


class Chat:
    """Takes turns of conversations, and owns what they need: the engine, its threads, slots and queue.

    Lives inside an ``async with``, which loads the engine; it can be entered again after it was left.

    :param engine: what answers.
    :param chat_prompt_clazz: what writes the prompt.
    :param params: those of every answer, where a request says nothing else.
    :param limits: how many at once, and how long.
    :param param_limits: the least and the most that a request may set, by name.
    :param seed: seeds the sequence of the answers' seeds; None is random.
    :param locale: what the log's lines for people are written in.
    :param logger: for the lines on loading, answers and shutdown; by default that of this module.
    """

    def __init__(
        self,
        engine: Engine,
        chat_prompt_clazz: type[AbstractChatPrompt],
        params: GenerationParams,
        limits: Limits,
        param_limits: dict[str, tuple[float, float]],
        seed: int | None,
        locale: Locale = "en",
        logger: logging.Logger | None = None,
    ) -> None:
        self._messages = messages_of(locale)
        self.logger = logging.getLogger(__name__) if logger is None else logger
        self.engine, self.params, self.limits, self.param_limits = engine, params, limits, param_limits
        self.context_len = limits.context_len or DEFAULT_CONTEXT_LEN
        self.state: State = "starting"
        self.admission = Admission(limits.num_of_concurrent_executions, limits.max_queue_size)
        self._chat_prompt_clazz = chat_prompt_clazz
        self._seeds = random.Random(seed)  # noqa: S311 - the draws of a language model need no secrecy
        self._memory = MemoryConversationStore()
        self._console_user = User(random_id(), self._memory)  # no account of an app is called that
        self._turns = Turns(self._turn_ended)
        self._loading: asyncio.Task[None] | None = None
        self.metrics = Metrics(
            running=lambda: self.admission.running,
            waiting=lambda: self.admission.waiting,
            sessions=lambda: len(self._memory),
            sessions_bytes=lambda: self._memory.bytes,
            engine=lambda: self.engine.figures(),
        )
        self.engine.on_step = self.metrics.step

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._shut_down()
        self._end()

    async def _start(self) -> None:
        """Begin to load the engine; return when it is loaded, at once where it loads slowly."""
        # made here, after gunicorn's fork: threads do not survive one
        slots = self.limits.num_of_concurrent_executions
        self.state = "starting"
        self.admission = Admission(slots, self.limits.max_queue_size)
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="aiochatstream-generate")
        self._prompt_threads = ThreadPoolExecutor(PROMPT_THREADS, thread_name_prefix="aiochatstream-prompt")
        self._housekeeping = [asyncio.create_task(self.metrics.probe_lag()), asyncio.create_task(self._sweep())]
        self._loading = asyncio.create_task(self._load())
        if self.engine.loads_slowly:
            self._loading.add_done_callback(self._log_failure)
            return
        try:
            await self._loading
        except BaseException:
            self._end()  # nobody leaves what could not be entered
            raise

    async def _shut_down(self) -> None:
        """Take no more turns; wait for those under way, as long as the limits say, then stop them."""
        self.drain()
        if not await self._turns.wait(self.limits.shutdown_timeout):
            self.logger.warning(self._messages.stopping.format(count=len(self._turns)))
            self._turns.stop_all("shutdown")
            if not await self._turns.wait(ENDING_SECONDS):
                self.logger.error(self._messages.stuck.format(count=len(self._turns)))

    def _end(self) -> None:
        """Give back what :meth:`_start` took; where a turn is stuck, its thread keeps the engine."""
        for task in self._housekeeping:
            task.cancel()
        if self._loading is not None:
            self._loading.cancel()
        self._prompt_threads.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(wait=not self._turns)
        if not self._turns:
            self.engine.close()

    async def wait_ready(self) -> None:
        """Return when the model is loaded. Raises what loading it raised."""
        if self._loading is None:
            raise RuntimeError("Call chat_stream.setup(app) and start the app first, or use `async with chat_stream`.")
        logged = self._loading.remove_done_callback(self._log_failure)  # who waits is told
        try:
            await asyncio.shield(self._loading)
        except asyncio.CancelledError:
            if logged:
                self._loading.add_done_callback(self._log_failure)
            raise

    def check_ready(self) -> None:
        """Raises :class:`~aiochatstream.errors.Starting` or :class:`~aiochatstream.errors.Draining` unless ready."""
        if self.state == "starting":
            raise Starting("The model is being loaded.", retry_after=5)
        if self.state == "failed":
            raise Starting("The model could not be loaded; the server's log says why.", retry_after=60)
        if self.state == "draining":
            raise Draining("The server is shutting down and takes no new requests.", retry_after=5)

    def drain(self) -> None:
        """Take no new requests (503 ``draining``) and send away those who wait; running answers go on."""
        self.state = "draining"
        self.admission.drain()

    def running_turn(self, user: User, name: str) -> RunningTurn | None:
        """The turn of this conversation that is under way in this process."""
        return self._turns.get(user.id, name)

    def override(
        self, *overrides: ParamOverrides | None, stop: tuple[str, ...] = (), where: str = "params."
    ) -> GenerationParams:
        """:meth:`GenerationParams.override` of this server's own parameters, within its limits."""
        vocabulary = self.engine.vocabulary
        return self.params.override(*overrides, stop=stop, limits=self.param_limits, vocabulary=vocabulary, where=where)

    def queue_positions(self, user: User) -> dict[str, int]:
        """Where the turns of ``user`` that wait stand in the queue, by conversation; 1 is next."""
        turns = self._turns.of_user(user.id)
        return {name: turn.position for name, turn in turns.items() if turn.position}

    async def prompt_text(self, told: Conversation, message: str) -> str:
        """What the model is told when ``message`` follows ``told``; for an engine without a tokenizer, as JSON."""
        prompt = self._chat_prompt_clazz()
        prompt.conversation, prompt.message = told, message

        def text() -> str:
            # the request may have asked for fewer tokens than usual
            least = self.params.model_copy(update={"max_new_tokens": 1})
            made = self._make_prompt(prompt, least)
            if prompt.tokenizer is None:
                return json.dumps(made.messages, ensure_ascii=False)
            return prompt.create_prompt()

        return await self._in_prompt_thread(text)

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
        turn = await self.begin_turn(user, name, Ask(message), overrides, system=system)
        try:
            event = None
            while not isinstance(event, Ended | Failed):
                event = await turn.next_event()
                yield event
        finally:
            turn.stop("stopped")  # no effect on a turn that has ended
            await turn.wait_ended()

    async def begin_turn(
        self, user: User, name: str, ask: Ask, *overrides: ParamOverrides | None, system: str = ""
    ) -> RunningTurn:
        """Take the conversation, a slot or a place in the queue, and make the prompt; then set the turn going.

        :param ask: what is to be answered.
        :param overrides: what the user and the request have set; the last one counts.
        :param system: what the model is told first, in place of what the prompt class says; empty leaves that.

        Raises what the request is to be refused with; then nothing has changed.
        """
        self.check_ready()
        prompt = self._chat_prompt_clazz()
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
            dataclasses.replace(made, owner=user.id),
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

    async def begin_answers(
        self, given: GivenMessages | GivenTexts, overrides: ParamOverrides, count: int = 1, *, owner: str, **more: Any
    ) -> list[RunningTurn]:
        """Take as many slots or places in the queue as there are answers, in one step, make the prompts, and set turns
        going that belong to no conversation: ``count`` for each prompt, one prompt's after another's.

        :param overrides: what the request has set. Without ``max_new_tokens``, an answer has what room the prompt
            leaves, up to the server's own; with a seed, the answers to a prompt have this one and those after it.
        :param owner: as :class:`~aiochatstream.engines.Prompt` has it.
        :param more: what else is to be set of :class:`~aiochatstream.params.GenerationParams`.

        Raises what the request is to be refused with; then nothing has changed.
        """
        self.check_ready()
        prompt = self._chat_prompt_clazz()
        is_chat = isinstance(given, GivenMessages)
        stop = tuple(prompt.get_stop_strs()) if is_chat else ()
        params = self.override(overrides, stop=stop, where="").model_copy(update=more)
        slots, total = self.admission.slots, count * len(given)
        if total > slots:
            field = "n" if count > 1 else "prompt"
            raise InvalidValue(f"{field}: {total} answers are more than this server makes at a time, {slots}.")
        asked = overrides.max_new_tokens
        tickets = self.admission.reserve_all(total)
        turns = [self._turns.take_new() for _ in tickets]
        try:
            made = await self._in_prompt_thread(self._make_prompts, given, prompt, params, asked)
            self.check_ready()  # a shutdown may have begun meanwhile
        except BaseException:
            for turn, ticket in zip(turns, tickets, strict=True):
                ticket.release()
                await self._turns.give_up("", turn.message_id)
            raise
        pairs = prompt.get_replacement_when_output() if is_chat else []
        for at, (turn, ticket) in enumerate(zip(turns, tickets, strict=True)):
            one, room = made[at // count]
            seed = self._seeds.getrandbits(63) if overrides.seed is None else (overrides.seed + at % count) % 2**63
            own = params.model_copy(update={"seed": seed, "max_new_tokens": room})
            job = self._job(dataclasses.replace(one, owner=owner), own, ticket, pairs)
            self._turns.start("", turn.message_id, job)
        return turns

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
            return await user.forget(name) or discarded is not None
        finally:
            await self._turns.give_up(user.id, name)

    async def rewrite(
        self, user: User, name: str, change: Callable[[Conversation], Conversation], *, if_turn: int | None = None
    ) -> Kept:
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

    async def _take(self, user: User, name: str) -> RunningTurn:
        return await self._turns.take(user.id, name, functools.partial(user.hold, name))

    def _job(
        self, made: Prompt, params: GenerationParams, ticket: Ticket, pairs: list[tuple[str, str]], **turn: Any
    ) -> Job:
        """What a turn is to do.

        :param pairs: replacements on the way out.
        :param turn: what makes it one of a conversation.
        """
        answer = functools.partial(self.engine.generate, made, params)
        if pairs:
            answer = functools.partial(replaced, answer, pairs)
        return Job(
            prompt_tokens=len(made.token_ids),
            ticket=ticket,
            generate=functools.partial(DeltaStream, self._threads, answer),
            on_gap=self.metrics.gap,
            retry_after=self.admission.retry_after,
            max_queue_wait=self.limits.max_queue_wait,
            max_answer=self.limits.max_answer,
            **turn,
        )

    def _make_prompts(
        self, given: GivenMessages | GivenTexts, prompt: AbstractChatPrompt, params: GenerationParams, asked: int | None
    ) -> list[tuple[Prompt, int]]:
        """In a thread: the prompts, each with the tokens that its answer may have, ``asked`` where that is said."""
        self.engine.check(params)
        prompt.tokenizer = self.engine.tokenizer
        if prompt.tokenizer is not None and given.chars > CHARS_PER_TOKEN * self.context_len:
            raise ContextLengthExceeded(f"The prompt's {given.chars} characters are too many for this model.")
        goes_on = isinstance(given, GivenTexts)
        made = [Prompt(messages, ids, continued=goes_on) for messages, ids in given.encode(prompt)]
        if prompt.tokenizer is None:
            return [(one, params.max_new_tokens) for one in made]
        highest = max(max(one.token_ids, default=0) for one in made)
        vocabulary = self.engine.vocabulary
        if vocabulary is not None and highest >= vocabulary:
            raise InvalidValue(f"prompt: {highest} is none of the model's {vocabulary} token ids.")
        rooms = [self.context_len - len(one.token_ids) for one in made]
        if min(rooms) < (asked or 1):
            length = self.context_len - min(rooms)
            raise ContextLengthExceeded(
                f"This model's context is {self.context_len} tokens long; the prompt has {length} of them, "
                f"and the answer is to have {asked or 'at least 1'}."
            )
        return [(one, min(params.max_new_tokens, room)) for one, room in zip(made, rooms, strict=True)]

    def _make_prompt(self, prompt: AbstractChatPrompt, params: GenerationParams) -> Prompt:
        """In a thread: templates and tokenizers block."""
        self.engine.check(params)
        ids: list[int] = []
        prompt.tokenizer = self.engine.tokenizer
        if prompt.tokenizer is not None:
            ids = fit(prompt, context_len=self.context_len, max_new_tokens=params.max_new_tokens)
        return Prompt(prompt.get_messages(), ids, continued=bool(prompt.open_answer))

    async def _in_prompt_thread(self, function: Callable[..., Result], *args: Any) -> Result:
        def call() -> Result:
            try:
                return function(*args)
            except StopIteration as error:  # which a future cannot hold
                raise RuntimeError("StopIteration in a prompt class") from error

        return await asyncio.get_running_loop().run_in_executor(self._prompt_threads, call)

    async def _sweep(self) -> None:
        """Let go of conversations that nobody came back to, also where nobody comes at all."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._memory.sweep()

    def _turn_ended(self, turn: RunningTurn, last: Ended | Failed) -> None:
        reason = last.finish_reason if isinstance(last, Ended) else last.error.code
        figures = {**turn.usage._asdict(), **turn.timing._asdict()}
        self.metrics.finished(reason, **figures)
        told = " ".join(f"{name}={value}" for name, value in figures.items())
        self.logger.info("answer %s finished_reason=%s %s", turn.message_id, reason, told)

    def _check_logit_bias(self) -> None:
        """How many token ids there are is known only from the model."""
        try:
            self.override(ParamOverrides(logit_bias=self.params.logit_bias), where="")
        except InvalidValue as error:
            raise ValueError(error.detail) from None

    async def _load(self) -> None:
        try:
            await in_daemon_thread(self._load_engine)
        except BaseException:
            self.state = "failed"
            raise
        if self.state == "starting":
            self.state = "ready"

    def _load_engine(self) -> None:
        self.engine.load(self.limits.num_of_concurrent_executions, self.context_len)
        limit = self.engine.max_context_len
        if limit is not None:
            if self.limits.context_len is not None and self.context_len > limit:
                raise ValueError(f"context_len: at most {limit} with this model, not {self.context_len}.")
            self.context_len = min(self.context_len, limit)
        if self.engine.tokenizer is not None and self.context_len <= self.params.max_new_tokens:
            raise ValueError(f"max_new_tokens: must be below context_len ({self.context_len}) with this model.")
        self._check_logit_bias()
        # a prompt class that does not go with this model shows now, not at the first request
        prompt = self._chat_prompt_clazz()
        prompt.message = "Hello"
        self._make_prompt(prompt, self.params)

    def _log_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.logger.error(self._messages.load_failed, exc_info=error)
