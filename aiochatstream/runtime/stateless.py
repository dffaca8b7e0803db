"""Answers that belong to no conversation: the client gives all that the model is told, and nothing is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiochatstream.engines import Prompt
from aiochatstream.errors import ContextLengthExceeded, InvalidValue
from aiochatstream.params import GenerationParams, ParamOverrides, check_token_ids
from aiochatstream.prompts import AbstractChatPrompt, ChatInput, TextInput
from aiochatstream.runtime.engine_runtime import Runtime
from aiochatstream.runtime.turns import RunningTurn

MOST_PROMPT_LOGPROBS = 65_536
"""Of all prompts of a request, those of the likeliest tokens included: they are held until its answer is written."""


class Stateless(Runtime):
    """Answers messages and texts as they are given."""

    async def begin_answers(
        self, given: ChatInput | TextInput, overrides: ParamOverrides, count: int = 1, *, owner: str, **more: Any
    ) -> list[RunningTurn]:
        """Take slots or places in the queue, as :meth:`Admission.reserve_all` has it, make the prompts, and set turns
        going that belong to no conversation: ``count`` for each prompt, one prompt's after another's.

        :param overrides: what the request has set. Without ``max_new_tokens``, an answer has what room the prompt
            leaves, up to the server's own; with a seed, the answers to a prompt have this one and those after it.
        :param owner: as :class:`~aiochatstream.engines.Prompt` has it.
        :param more: what else is to be set of :class:`~aiochatstream.params.GenerationParams`. Where ``max_new_tokens``
            is 0, the prompts are read and nothing is written.

        Raises what the request is to be refused with; then nothing has changed.
        """
        self.check_ready()
        prompt = self._prompt_class()
        is_chat = isinstance(given, ChatInput)
        stop = tuple(prompt.get_stop_strs()) if is_chat else ()
        params = self.override(overrides, stop=stop, where="").model_copy(update=more)
        asked = overrides.max_new_tokens
        self.admission.check_room()
        await self._check(params)  # may take seconds, in which nothing is held
        self.check_ready()
        tickets = self.admission.reserve_all(count * len(given))
        turns = [self._turns.begin_stateless() for _ in tickets]
        try:
            made = await self._in_prompt_thread(self._make_prompts, given, prompt, params, asked)
            check_prompt_logprobs([one for one, _ in made], params, count)
            self.check_ready()  # a shutdown may have begun meanwhile
        except BaseException:
            for turn, ticket in zip(turns, tickets, strict=True):
                ticket.release()
                await self._turns.cancel("", turn.message_id)
            raise
        plain = is_chat and params.constraint is None  # what is put in could break the form
        pairs = prompt.get_replacement_when_output() if plain else []
        for at, (turn, ticket) in enumerate(zip(turns, tickets, strict=True)):
            one, room = made[at // count]
            seed = self._seeds.getrandbits(63) if overrides.seed is None else (overrides.seed + at % count) % 2**63
            own = params.model_copy(update={"seed": seed, "max_new_tokens": room})
            mine = self._own(one, owner, own_system=given.has_server_prefix)
            job = self._job(mine, own, ticket, pairs)
            self._turns.start("", turn.message_id, job)
        return turns

    def _make_prompts(
        self, given: ChatInput | TextInput, prompt: AbstractChatPrompt, params: GenerationParams, asked: int | None
    ) -> list[tuple[Prompt, int]]:
        """In a thread: the prompts, each with the tokens that its answer may have, ``asked`` where that is said."""
        prompt.tokenizer = self.engine.tokenizer
        if prompt.tokenizer is not None and given.too_long(self.context_len):
            raise ContextLengthExceeded(f"The prompt is too long: this model's context has {self.context_len} tokens.")
        made = [Prompt(messages, ids, continued=given.continues) for messages, ids in given.encode(prompt)]
        if prompt.tokenizer is None:
            return [(one, params.max_new_tokens) for one in made]
        check_token_ids("prompt", (token_id for one in made for token_id in one.token_ids), self.engine.vocab_size)
        rooms = [self.context_len - len(one.token_ids) for one in made]
        if min(rooms) < (asked or min(1, params.max_new_tokens)):
            length = self.context_len - min(rooms)
            raise ContextLengthExceeded(
                f"This model's context is {self.context_len} tokens long; the prompt has {length} of them, "
                f"and the answer is to have {asked or 'at least 1'}."
            )
        return [(one, min(params.max_new_tokens, room)) for one, room in zip(made, rooms, strict=True)]


def check_prompt_logprobs(prompts: Sequence[Prompt], params: GenerationParams, count: int) -> None:
    """Raise InvalidValue if ``count`` answers to each prompt have too many logprobs of prompts for one request."""
    if not params.prompt_logprobs:
        return
    each = 1 + (params.logprobs or 0)
    tokens = count * sum(len(one.token_ids) for one in prompts)
    if tokens * each > MOST_PROMPT_LOGPROBS:
        raise InvalidValue(
            f"prompt: must have 1 to {MOST_PROMPT_LOGPROBS // each} tokens in all with {each} logprobs each, "
            f"not {tokens}. Send fewer prompts in a request."
        )
