"""The bodies of ``POST /tokenize`` and ``POST /detokenize``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from aiochatstream.params import ChatTemplateKwargs, Flag
from aiochatstream.web.openai.chat_request import ChatMessages, Tools, check_continuation
from aiochatstream.web.openai.request_models import ModelRequest, String, TokenId


class TokenizeRequest(ModelRequest):
    """The body of ``POST /tokenize``: either ``prompt``, or ``messages`` with their options.

    return_token_strs: also return the tokens as the vocabulary spells them.
    """

    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"chat_template": ()}

    prompt: String | None = None
    messages: ChatMessages | None = None
    tools: Tools | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None
    continue_final_message: Flag | None = None
    add_generation_prompt: Flag | None = None
    add_special_tokens: Flag | None = None
    return_token_strs: Flag | None = None

    @model_validator(mode="after")
    def _check_combinations(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: must be sent if messages is absent, and only then")
        if self.add_special_tokens not in (None, self.messages is None):
            raise ValueError("add_special_tokens: must be true with prompt and false with messages, or absent")
        if self.messages is not None:
            check_continuation(
                self.messages, continues=self.continue_final_message, add_generation_prompt=self.add_generation_prompt
            )
        return self


class DetokenizeRequest(ModelRequest):
    """The body of ``POST /detokenize``."""

    MAY_BE_EMPTY = frozenset({"tokens"})

    tokens: Annotated[list[TokenId], Field(fail_fast=True, description="a list of token ids")]
