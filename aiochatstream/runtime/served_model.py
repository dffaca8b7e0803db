"""The model of an engine: its settings, and the prompts and parameters of its answers."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiochatstream.conversations.conversation import Conversation, Turn
from aiochatstream.engines import AsyncEngine, Engine, Prompt
from aiochatstream.errors import InvalidValue
from aiochatstream.params import (
    DEFAULT_CONTEXT_LEN,
    MAX_NEW_TOKENS,
    THINKING_LEVELS,
    THINKING_VARIABLES,
    Capacity,
    GenerationParams,
    Limits,
    ParamLimits,
    ParamOverrides,
    ParamSource,
    ThinkingLevel,
)
from aiochatstream.prompts import AbstractChatPrompt, ChatPrompt, CompletionsOnly, TemplateArguments, fit
from aiochatstream.prompts.base import without_thoughts
from aiochatstream.runtime.model_params import accept_model_params
from aiochatstream.texts import Locale

ANSWER_SHARE = 4
"""With ``fill_context``, turns are dropped to leave the context's length divided by this for the answer."""

MIN_FILL_TOKENS = 2048
"""Length that ``fill_context`` allows every answer, even if it is more than an equal share of the engine's memory."""

PROBE = "Hello"
PROBE_CONVERSATION = Conversation((Turn("1", "1", ""),))
"""Message and history of two trial prompts. Their common prefix is the server's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """Configuration of a :class:`~aiochatstream.runtime.engine_runtime.Runtime`.

    engine: generates the answers.
    prompt_class_of: returns the prompt class, given the tokenizer (None for an engine without one).
    params: default parameters of answers.
    capacity: number of concurrent answers and waiting requests.
    limits: limits of time and size.
    param_limits: values that requests may set.
    seed: seed of the sequence of the answers' seeds; None for a random one.
    locale: language of log lines for operators.
    logger: logger of loading, answers and shutdown.
    """

    engine: Engine | AsyncEngine
    prompt_class_of: Callable[[Any], type[AbstractChatPrompt]]
    params: GenerationParams
    capacity: Capacity
    limits: Limits
    param_limits: ParamLimits
    seed: int | None
    locale: Locale
    logger: logging.Logger


class ServedModel:
    """The model of an engine, with the settings of a server for it. Many of them are known after it is loaded."""

    def __init__(self, config: RuntimeConfig) -> None:
        self.engine = config.engine
        self.params = self._app_params = config.params
        """Default parameters of answers; from the time the engine is loaded with the model's own values."""
        self._model_params: dict[str, Any] = {}
        """The model's own values among them; set when the engine is loaded."""
        self.limits, self.param_limits = config.limits, config.param_limits
        requested = self.limits.context_len
        self.context_len = requested if isinstance(requested, int) else DEFAULT_CONTEXT_LEN
        """Maximum length of prompt and answer together in tokens; set when the engine is loaded."""
        self._prompt_class_of = config.prompt_class_of
        self._prompt_class: type[AbstractChatPrompt] = ChatPrompt
        """Set when the engine is loaded."""
        self._template_arguments: TemplateArguments | None = None
        """Arguments that the prompt class supports; None until the engine is loaded, and for an engine without a
        tokenizer, which receives all parameters itself."""
        self._fill_tokens = sys.maxsize
        """Maximum length of an answer with ``fill_context`` for which nobody has set another one: as all reserve their
        memory, a whole context each would leave none for others. Set when the engine is loaded."""
        self._server_prefix: list[int] = []
        """Tokens at the beginning of every prompt; set when the engine is loaded."""
        self._seeds = random.Random(config.seed)  # noqa: S311 - sampling needs no secrecy
        self._has_seed = config.seed is not None

    @property
    def chats(self) -> bool:
        """False if the model has no format of chats, and only completes texts. Known once it is loaded."""
        return not issubclass(self._prompt_class, CompletionsOnly)

    @property
    def thinking_levels(self) -> tuple[ThinkingLevel, ...]:
        """Levels of ``thinking`` that differ for this model and that requests may choose, in ascending order after
        ``auto``; empty if its chat template has no switch for thoughts, and until it is loaded.

        For a template that knows only on and off, ``high`` is on, unless the server allows only a lower level.
        """
        arguments = self._template_arguments or TemplateArguments()
        return arguments.distinct_levels(self.param_limits.thinking or THINKING_LEVELS)

    @property
    def template_variables(self) -> tuple[str, ...]:
        """Variables of the chat template that requests may set in ``chat_template_kwargs``."""
        names = (self._template_arguments or TemplateArguments()).names
        limits = self.param_limits
        return tuple(
            name
            for name in names
            if (limits.thinking is None if limits.chat_template_kwargs is None else name in limits.chat_template_kwargs)
            and (limits.thinking is None or name not in THINKING_VARIABLES)
        )

    def override(
        self, *overrides: ParamOverrides | None, stop: tuple[str, ...] = (), prefix: str = "params."
    ) -> GenerationParams:
        """Return :meth:`GenerationParams.override` of the server's parameters, within its limits.

        Raise :class:`~aiochatstream.errors.InvalidValue` also for arguments that the chat template does not support.
        """
        params = self.params.override(
            *overrides, stop=stop, limits=self.param_limits, vocabulary_size=self.engine.vocab_size, prefix=prefix
        )
        if self._template_arguments is not None:
            self._template_arguments.check(params, prefix)
        return params

    def source_of(self, name: str, overrides: ParamOverrides) -> ParamSource:
        """Return the origin of a parameter's value.

        :param overrides: parameters of the user.
        """
        if getattr(overrides, name) is not None:
            return "user"
        if name in self._app_params.model_fields_set:
            return "app"
        return "model" if name in self._model_params else "default"

    @property
    def _requested_context_len(self) -> int | None:
        """Context length to load the engine with; None for the model's own."""
        requested = self.limits.context_len
        if requested == "max" or (requested is None and isinstance(self.engine, AsyncEngine)):
            return None  # the default limits the memory of engines in this process
        return requested or DEFAULT_CONTEXT_LEN

    def _set_up_model(self) -> None:
        """Set the properties that depend on the engine's model. Blocking: it renders and tokenises prompts.

        Raise ValueError for settings that do not match the model, and the error of a prompt class that does not.
        """
        requested, limit = self.limits.context_len, self.engine.max_context_len
        if limit is not None and isinstance(requested, int) and requested > limit:
            raise ValueError(f"context_len: must be at most {limit} with this model, not {requested}.")
        self._set_context_len()
        self._set_params()
        self._prompt_class = self._prompt_class_of(self.engine.tokenizer)
        self._template_arguments = self._find_template_arguments()
        self._check_params()
        self._server_prefix = self._find_server_prefix()
        self.engine.share(self._server_prefix)

    def _set_context_len(self) -> None:
        limit = self.engine.max_context_len
        length = self._requested_context_len or limit or DEFAULT_CONTEXT_LEN
        self.context_len = min(length, limit or length)

    def _set_params(self) -> None:
        """Add the values that depend on the model to the application's parameters."""
        self._model_params = accept_model_params(self.engine.default_params, self._app_params, self.param_limits)
        values = dict(self._model_params)
        if self.engine.tokenizer is not None:
            if self.limits.fill_context:
                values["max_new_tokens"] = min(self.context_len - 1, MAX_NEW_TOKENS)
            elif self._app_params.max_new_tokens >= self.context_len:
                raise ValueError(f"max_new_tokens: must be below context_len ({self.context_len}) with this model.")
        elif self.limits.fill_context and isinstance(self.engine, AsyncEngine):
            values["max_new_tokens"] = MAX_NEW_TOKENS
        self.params = self._app_params.with_values(values)
        if self.limits.fill_context:
            self.params.model_fields_set.discard("max_new_tokens")  # an engine that knows the context shortens it

    def _find_template_arguments(self) -> TemplateArguments | None:
        """Return the arguments that the prompt class supports: none without a chat template."""
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            return None
        has_template = issubclass(self._prompt_class, ChatPrompt) and getattr(tokenizer, "chat_template", None)
        return TemplateArguments.of(tokenizer) if has_template else TemplateArguments()

    def _check_params(self) -> None:
        """Check the server's own parameters against the vocabulary and the template, which are known after loading."""
        try:
            self.override(ParamOverrides(logit_bias=self.params.logit_bias), prefix="")
        except InvalidValue as error:
            raise ValueError(error.detail) from None

    def _find_server_prefix(self) -> list[int]:
        """Return the tokens at the beginning of all prompts of chats.

        Raise the error of a prompt class that does not match the model, before the first request does.
        """
        if not self.chats:
            return []
        prompts = []
        for conversation in (Conversation(), PROBE_CONVERSATION):
            chat_prompt = self._prompt_class()
            chat_prompt.conversation, chat_prompt.message = conversation, PROBE
            prompts.append(self._make_prompt(chat_prompt, self.params).token_ids)
            chat_prompt.check()
        return prompts[0][: _common_length(*prompts)]

    def _check_chats(self) -> None:
        """Raise :class:`~aiochatstream.errors.BadRequest` if the model only completes texts."""
        if not self.chats:
            CompletionsOnly.refuse()

    def _make_prompt(self, chat_prompt: AbstractChatPrompt, params: GenerationParams) -> Prompt:
        """Return the prompt of an answer. Call it in a thread: templates and tokenizers block."""
        self.engine.check(params)
        ids: list[int] = []
        self._prepare(chat_prompt, params)
        if chat_prompt.tokenizer is not None:
            answer_tokens, needed = params.max_new_tokens, None
            if self.limits.fill_context:
                answer_tokens = min(answer_tokens, self.context_len // ANSWER_SHARE)
                needed = 1 if chat_prompt.open_answer else None  # the answer so far may leave less than the share
            ids = fit(chat_prompt, context_len=self.context_len, answer_tokens=answer_tokens, min_answer_tokens=needed)
        messages = without_thoughts(chat_prompt.get_messages())
        return Prompt(messages, ids, continued=bool(chat_prompt.open_answer), may_shorten=True)

    def _prepare(self, chat_prompt: AbstractChatPrompt, params: GenerationParams) -> None:
        """Set the tokenizer of ``chat_prompt``, and the arguments of its template."""
        chat_prompt.tokenizer = self.engine.tokenizer
        if self._template_arguments is not None:
            chat_prompt.template_kwargs = self._template_arguments.values(params)

    def _shorten_answer(self, params: GenerationParams, prompt: Prompt) -> GenerationParams:
        """Return ``params`` with at most the tokens that ``prompt`` leaves in the context or the memory allows."""
        left = self.context_len - len(prompt.token_ids)
        if self.limits.fill_context and "max_new_tokens" not in params.model_fields_set:
            left = min(left, self._fill_tokens)
        if self.engine.tokenizer is None or params.max_new_tokens <= left:
            return params
        return params.model_copy(update={"max_new_tokens": left})

    def _with_owner(self, prompt: Prompt, owner: str, affinity: str, *, has_server_prefix: bool) -> Prompt:
        """Return ``prompt`` as a prompt of ``owner``.

        :param affinity: see :class:`~aiochatstream.Prompt`.
        :param has_server_prefix: True if the prompt begins with the server's own text, not with a client's.
        """
        shared = _common_length(self._server_prefix, prompt.token_ids) if has_server_prefix else 0
        return dataclasses.replace(prompt, owner=owner, affinity=affinity, shared_tokens=shared)

    def _with_seed(self, params: GenerationParams, seed: int | None = None) -> GenerationParams:
        """Return ``params`` with ``seed``, or with the next seed of the server's sequence if that is None.

        A seed of a random sequence is not among the parameters that somebody has set.
        """
        seeded = params.model_copy(update={"seed": self._seeds.getrandbits(63) if seed is None else seed})
        if seed is None and not self._has_seed:
            seeded.model_fields_set.discard("seed")
        return seeded


def affinity_of(*texts: str) -> str:
    """Return the :attr:`Prompt.affinity` of a conversation that ``texts`` identify."""
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()


def _common_length(first: list[int], second: list[int]) -> int:
    """Return the length of the common prefix."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(first), len(second)))
