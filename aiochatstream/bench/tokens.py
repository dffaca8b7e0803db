"""Token counts of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aiochatstream.bench.request import RequestRecord
from aiochatstream.extras import requires_extra

TokenCounter = Callable[[str], int]


def load_tokenizer(name: str) -> TokenCounter:
    """Return a counter with the HuggingFace tokenizer ``name`` (id or folder). Raise ValueError if it fails to load."""
    with requires_extra("transformers"):
        from transformers import AutoTokenizer  # slow to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # noqa: BLE001 - transformers raises errors of many types
        raise ValueError(f"--tokenizer {name} cannot be loaded ({type(error).__name__}).") from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def set_token_counts(records: Iterable[RequestRecord], counter: TokenCounter | None) -> None:
    """Set ``tokens`` of completed requests: the server's count, else that of ``counter``, else the number of texts."""
    for record in records:
        if record.outcome == "completed" and record.tokens is None:
            record.tokens = record.stats.completion_tokens
            if record.tokens is None:
                record.tokens = counter(record.text) if counter else len(record.arrivals)
