"""The body of ``POST /v1/completions``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field, model_validator

from aiochatstream.params import Flag, Logprobs
from aiochatstream.web.openai.request_models import ChoicesRequest, Count

MOST_ANSWERS = 256
"""Of one request. To begin so many takes the event loop some milliseconds."""

Ids = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1, fail_fast=True)]
Item = TypeVar("Item")
Several = Annotated[list[Item], Field(min_length=1, max_length=MOST_ANSWERS, fail_fast=True)]


class CompletionRequest(ChoicesRequest):
    """The body of ``POST /v1/completions``."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"suffix": ("",)}

    prompt: Annotated[
        str | Several[str] | Ids | Several[Ids],
        Field(description=f"a string, a list of token ids, or a list of 1 to {MOST_ANSWERS} of either"),
    ]
    echo: Flag | None = None
    logprobs: Logprobs | None = None
    best_of: Count | None = None
    max_tokens: (
        Annotated[int, Field(ge=0, le=1_000_000, description="a whole number of tokens from 0 to 1000000")] | None
    ) = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens or None

    @property
    def texts(self) -> list[str | list[int]]:
        """The prompts."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[one for one in self.prompt if isinstance(one, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]

    @model_validator(mode="after")
    def _must_be_possible(self) -> CompletionRequest:
        prompts, answers = len(self.texts), self.n or 1
        if prompts * answers > MOST_ANSWERS:
            raise ValueError(
                f"{'prompt' if answers == 1 else 'n'}: must ask for 1 to {MOST_ANSWERS} answers in all, "
                f"not {prompts * answers} (prompts: {prompts}, n: {answers})"
            )
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of: must be n, or absent; answers are not ranked here")
        return self
