"""Answers without a conversation: the request contains the whole prompt, and nothing is saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aiochatstream.engines import AnswerStream, OnDelta, Prompt
from aiochatstream.errors import BadRequest, ContextLengthExceeded, InvalidValue
from aiochatstream.params import GenerationParams, ParamOverrides, check_token_ids
from aiochatstream.prompts import AbstractChatPrompt, ChatInput, TextInput
from aiochatstream.prompts.inputs import Encoded, text_messages
from aiochatstream.runtime.engine_runtime import Runtime
from aiochatstream.runtime.running_turn import RunningTurn
from aiochatstream.runtime.served_model import affinity_of

MAX_PROMPT_LOGPROBS = 65_536
"""Maximum number of logprobs of all prompts of a request, which are in memory until its response is sent."""


class Stateless(Runtime):
    """Answers to complete prompts: chat messages, or texts to continue."""

    async def begin_answers(
        self,
        model_input: ChatInput | TextInput,
        overrides: ParamOverrides,
        count: int = 1,
        *,
        owner: str,
        with_token_ids: bool = False,
        **more: Any,
    ) -> list[RunningTurn]:
        """Reserve slots or places in the queue (:meth:`Admission.reserve_all`), make the prompts, and start the turns:
        ``count`` for the first prompt, then for the next one.

        :param overrides: parameters of the request. Unless :attr:`Limits.strict_max_tokens`, a ``max_new_tokens`` above
            the server's own value means that value, and what the prompt leaves in the context limits an answer. With a
            seed, the answers to a prompt have this seed and the following ones.
        :param owner: owner of the prompts, see :class:`~aiochatstream.Prompt`.
        :param with_token_ids: emit the token ids of prompts and answers, if the engine has a tokenizer.
        :param more: further fields of :class:`~aiochatstream.GenerationParams`. If ``max_new_tokens`` is 0, the prompts
            are read and nothing is generated.

        Raise :class:`~aiochatstream.errors.ChatStreamError` if the request is refused; then nothing has changed.
        """
        self.check_ready()
        is_chat = isinstance(model_input, ChatInput)
        if is_chat:
            self._check_chats()
        chat_prompt = self._prompt_class()
        stop = chat_prompt.stop_strings() if is_chat else ()
        if overrides.max_new_tokens is not None and not self.limits.strict_max_tokens:
            most = min(overrides.max_new_tokens, self.params.max_new_tokens)
            overrides = overrides.model_copy(update={"max_new_tokens": most})
        params = self.override(overrides, stop=stop, prefix="").model_copy(update=more)
        self.admission.check_room()
        await self._check(params)  # may take seconds; nothing is reserved yet
        self.check_ready()
        tickets = await self.admission.reserve_all(count * len(model_input))
        turns = [self._turns.begin_stateless() for _ in tickets]
        try:
            needed = overrides.max_new_tokens if self.limits.strict_max_tokens else None
            prompts = await self._run_in_prompt_thread(self._make_prompts, model_input, chat_prompt, params, needed)
            check_prompt_logprobs([prompt for prompt, _ in prompts], params, count)
            self.check_ready()  # a shutdown may have begun in the meantime
        except BaseException:
            for ticket in reversed(tickets):
                ticket.release()
            for turn in turns:
                await self._turns.cancel("", turn.message_id)
            raise
        replaces = is_chat and params.constraint is None  # a replacement could violate the constraint
        replacements = chat_prompt.get_replacement_when_output() if replaces else []
        has_server_prefix = model_input.has_server_prefix and not overrides.chat_template_kwargs
        for index, (turn, ticket) in enumerate(zip(turns, tickets, strict=True)):
            prompt, max_new_tokens = prompts[index // count]
            affinity = affinity_of(owner, *first_texts(prompt.messages))
            prompt = self._with_owner(prompt, owner, affinity, has_server_prefix=has_server_prefix)
            seed = None if overrides.seed is None else (overrides.seed + index % count) % 2**63
            answer_params = self._with_seed(params.model_copy(update={"max_new_tokens": max_new_tokens}), seed)
            job = self._job(
                prompt,
                answer_params,
                ticket,
                replacements,
                accepts_tool_calls=bool(prompt.tools),
                prompt_ids=(prompt.token_ids or None) if with_token_ids else None,
            )
            self._turns.start("", turn.message_id, job)
        return turns

    async def begin_relay(self, generate: Callable[[OnDelta], AnswerStream], count: int) -> RunningTurn:
        """Reserve slots or places in the queue for ``count`` answers, and start one turn that generates all of them.

        It starts with the first slot. Its further slots are the next ones that become free, before those of other
        requests; until then, at most ``count`` - 1 answers run without a slot.

        :param generate: starts the generation, and passes each delta to its argument.

        Raise the errors of :meth:`check_ready` and of :meth:`Admission.reserve_all`.
        """
        self.check_ready()
        ticket, *others = await self.admission.reserve_all(count)
        turn = self._turns.begin_stateless()
        for other in others:
            turn.resources.callback(other.release)
        job = self._ticket_job(ticket, generate)
        self._turns.start("", turn.message_id, job)
        return turn

    def _make_prompts(
        self,
        model_input: ChatInput | TextInput,
        chat_prompt: AbstractChatPrompt,
        params: GenerationParams,
        needed: int | None,
    ) -> list[tuple[Prompt, int]]:
        """Return the prompts, each with the maximum number of tokens of its answer. Call it in a thread.

        :param needed: number of tokens that the context must leave for an answer; None for at least 1.
        """
        encoded = self._encode(model_input, chat_prompt, params)
        is_chat = isinstance(model_input, ChatInput)
        tools = model_input.tools_for(chat_prompt.tokenizer) if isinstance(model_input, ChatInput) else ()
        prompts = [
            Prompt(messages, ids, continued=model_input.continues, chat=is_chat, tools=tools)
            for messages, ids in encoded
        ]
        if chat_prompt.tokenizer is None:
            return [(prompt, params.max_new_tokens) for prompt in prompts]
        free = [self.context_len - len(prompt.token_ids) for prompt in prompts]
        if min(free) < (needed or min(1, params.max_new_tokens)):
            length = self.context_len - min(free)
            raise ContextLengthExceeded(
                f"This model's context has {self.context_len} tokens; the prompt has {length}, "
                f"and the answer needs {needed or 'at least 1'}."
            )
        return [(prompt, min(params.max_new_tokens, room)) for prompt, room in zip(prompts, free, strict=True)]

    def _encode(
        self, model_input: ChatInput | TextInput, chat_prompt: AbstractChatPrompt, params: GenerationParams
    ) -> list[Encoded]:
        """Return the messages and the token ids of each prompt. Call it in a thread."""
        self._prepare(chat_prompt, params)
        tokenizer = chat_prompt.tokenizer
        if tokenizer is not None and model_input.too_long(self.context_len):
            raise ContextLengthExceeded(f"The prompt is too long: this model's context has {self.context_len} tokens.")
        encoded = list(model_input.encode(chat_prompt))
        if tokenizer is not None:
            check_token_ids("prompt", (token_id for _, ids in encoded for token_id in ids), self.engine.vocab_size)
        if not self.engine.reads_messages:
            return encoded
        return [(messages or text_messages(str(tokenizer.decode(ids))), ids) for messages, ids in encoded]

    async def tokenize(self, model_input: ChatInput | TextInput, overrides: ParamOverrides) -> list[int]:
        """Return the token ids of a single prompt, which may be longer than the context.

        :param overrides: parameters of the chat template.

        Raise :class:`~aiochatstream.errors.BadRequest` if the engine has no tokenizer, and the errors of
        :meth:`begin_answers` about the prompt.
        """
        self._check_tokenizer()
        if isinstance(model_input, ChatInput):
            self._check_chats()
        params = self.override(overrides, prefix="")
        [(_, ids)] = await self._run_in_prompt_thread(self._encode, model_input, self._prompt_class(), params)
        return ids

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of ``token_ids``, with special tokens.

        Raise :class:`~aiochatstream.errors.BadRequest` if the engine has no tokenizer, and
        :class:`~aiochatstream.errors.InvalidValue` for an unknown id.
        """
        self._check_tokenizer()
        check_token_ids("tokens", token_ids, self.engine.vocab_size)
        return str(await self._run_in_prompt_thread(self.engine.tokenizer.decode, token_ids))

    def _check_tokenizer(self) -> None:
        self.check_ready()
        if self.engine.tokenizer is None:
            raise BadRequest("This server's engine has no tokenizer.")


def first_texts(messages: Sequence[dict[str, str]]) -> list[str]:
    """Return the messages before the first answer: they stay the same while a conversation grows."""
    texts = []
    for message in messages:
        texts.append(message["content"])
        if message["role"] != "system":
            break
    return texts


def check_prompt_logprobs(prompts: Sequence[Prompt], params: GenerationParams, count: int) -> None:
    """Raise InvalidValue if ``count`` answers to each prompt contain too many logprobs of prompts for one request."""
    if not params.prompt_logprobs:
        return
    per_token = 1 + (params.logprobs or 0)
    tokens = count * sum(len(prompt.token_ids) for prompt in prompts)
    if tokens * per_token > MAX_PROMPT_LOGPROBS:
        raise InvalidValue(
            f"prompt: must have 1 to {MAX_PROMPT_LOGPROBS // per_token} tokens in total with {per_token} logprobs "
            f"each, not {tokens}. Send fewer prompts in a request."
        )
