"""The prompt class of models that have no format of chats."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from aiochatstream.errors import BadRequest
from aiochatstream.prompts import CompletionsOnly
from tests.prompts.builders import fill


def test_a_chat_is_refused_with_the_remedy(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = fill(CompletionsOnly(), tokenizer, "Hello")
    with pytest.raises(BadRequest, match=r"only /v1/completions is available, unless .* --prompt NAME or --chat-temp"):
        prompt.encode()
