"""The body of ``POST /v1/completions``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field, model_validator

from aiochatstream.params import Flag, Logprobs
from aiochatstream.web.openai.request_models import ChoicesRequest, Count, TokenId

MAX_ANSWERS = 256
"""Maximum number of answers per request. To begin so many blocks the event loop for some milliseconds."""

TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Item = TypeVar("Item")
PromptList = Annotated[list[Item], Field(min_length=1, max_length=MAX_ANSWERS, fail_fast=True)]


class CompletionRequest(ChoicesRequest):
    """The body of ``POST /v1/completions``."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"suffix": ("",)}

    prompt: Annotated[
        str | PromptList[str] | TokenIds | PromptList[TokenIds],
        Field(description=f"a string, a list of token ids, or a list of 1 to {MAX_ANSWERS} of either"),
    ]
    echo: Flag | None = None
    logprobs: Logprobs | None = None
    best_of: Count | None = None
    max_tokens: Annotated[int, Field(ge=0, description="a whole number of tokens from 0")] | None = None

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_tokens or None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        token_ids = [item for item in self.prompt if isinstance(item, int)]
        return [token_ids] if token_ids else [item for item in self.prompt if not isinstance(item, int)]

    @model_validator(mode="after")
    def _check_answers(self) -> CompletionRequest:
        prompts, answers = len(self.prompts), self.n or 1
        if prompts * answers > MAX_ANSWERS:
            raise ValueError(
                f"{'prompt' if answers == 1 else 'n'}: must request 1 to {MAX_ANSWERS} answers in total, "
                f"not {prompts * answers} (prompts: {prompts}, n: {answers})"
            )
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of: must equal n, or be absent; this server does not rank answers")
        return self
