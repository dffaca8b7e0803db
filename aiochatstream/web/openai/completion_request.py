"""The body of ``POST /v1/completions``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from aiochatstream.params import Flag, Logprobs
from aiochatstream.web.openai.schemas import ChoicesRequest, Count

Ids = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1)]


class CompletionRequest(ChoicesRequest):
    """The body of ``POST /v1/completions``."""

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"suffix": ("",)}

    prompt: Annotated[
        str | Annotated[list[str], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)],
        Field(description="a string, a list of token ids, or a list of one or more of either"),
    ]
    echo: Flag | None = None
    logprobs: Logprobs | None = None
    best_of: Count | None = None

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
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of: must be n, or absent; answers are not ranked here")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo: does not go with logprobs; those of a prompt are not computed")
        return self
