"""How many tokens an answer has."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aiochatstream.bench.request import Record
from aiochatstream.extras import requires_extra

CountTokens = Callable[[str], int]


def load_tokenizer(name: str) -> CountTokens:
    """A counter with the HuggingFace tokenizer ``name`` (id or folder). Raises ValueError where there is none."""
    with requires_extra("transformers"):
        from transformers import AutoTokenizer  # takes its time, and only those who count need it

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # noqa: BLE001 - it raises whatever it likes
        raise ValueError(f"--tokenizer {name} cannot be loaded ({type(error).__name__}).") from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def count(records: Iterable[Record], count_tokens: CountTokens | None) -> None:
    """Set the tokens of completed answers: as the server told, or counted, or else a token for each piece of text."""
    for record in records:
        if record.outcome == "completed" and record.tokens is None:
            record.tokens = record.told.completion_tokens
            if record.tokens is None:
                record.tokens = count_tokens(record.text) if count_tokens else len(record.stamps)
