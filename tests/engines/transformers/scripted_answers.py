"""Engines whose answers are written by the tests: a tiny model, a tokenizer with marks, and a sampler with scripts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from aiochatstream import Delta, GenerationParams, Prompt
from aiochatstream.engines.token_bytes import byte_level_alphabet
from aiochatstream.engines.token_sampler import TokenSampler
from aiochatstream.engines.transformers.response_templates import TEMPLATES
from tests.engines.transformers.engine_harness import load_engine
from tests.engines.transformers.tiny_models import tiny

QWEN, HARMONY = TEMPLATES["qwen3"], TEMPLATES["harmony"]

SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|start|>",
    "<|channel|>",
    "<|constrain|>",
    "<|message|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
)
ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Added tokens that are not special, as in Qwen3."""

ENDS = ("<|im_end|>", "<|return|>", "<|call|>")
"""Tokens that end an answer."""

QWEN_PROMPT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
HARMONY_PROMPT = "<|start|>user<|message|>Hi<|end|><|start|>assistant"

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def marked_tokenizer() -> Any:
    """Return a tokenizer with a token for each byte and the marks of several families."""
    vocab = {character: at for at, character in enumerate(byte_level_alphabet())}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")  # noqa: S106
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL], special_tokens=True)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED])
    return tokenizer


MARKED = marked_tokenizer()


def ids_of(text: str) -> list[int]:
    ids: list[int] = MARKED.encode(text, add_special_tokens=False)
    return ids


class Script(TokenSampler):
    """A sampler that writes the text that :meth:`add` has added for the seed of an answer, as far as it may choose.

    An excluded token is replaced by the most likely one; a token without an alternative is not taken from the text.
    """

    def __init__(self) -> None:
        self._texts: dict[int, list[int]] = {}
        self._seeds = itertools.count(1)

    def add(self, text: str | list[int]) -> int:
        """Add the text, or the tokens, of an answer; return its seed."""
        seed = next(self._seeds)
        self._texts[seed] = ids_of(text) if isinstance(text, str) else text
        return seed

    def sample(
        self, logits: torch.Tensor, token_ids: Sequence[Sequence[int]], params: Sequence[GenerationParams]
    ) -> list[int]:
        tokens = []
        for row, row_params in zip(logits, params, strict=True):
            text = self._texts.get(row_params.seed) or ids_of("<|im_end|>")
            allowed = row > -torch.inf
            if allowed.sum() > 1 and allowed[text[0]]:
                tokens.append(text[0])
            else:
                tokens.append(int(row.argmax()))
            if allowed.sum() > 1:
                self._texts[row_params.seed] = text[1:]
        return tokens


class ScriptedModel:
    """An engine of a tiny model whose answers are written by the tests.

    :param template: the engine's response template.
    """

    def __init__(self, template: dict[str, Any] | None = QWEN, family: str = "Qwen2") -> None:
        model = tiny(family, layers=1)
        model.generation_config.eos_token_id = MARKED.convert_tokens_to_ids(list(ENDS))
        self.script = Script()
        self.engine = load_engine(
            model, MARKED, slots=4, token_sampler=self.script, response_template=template, prefix_cache_bytes=1 << 20
        )

    def answer(
        self,
        text: str | list[int],
        prompt: str = QWEN_PROMPT,
        tools: Sequence[dict[str, Any]] = (),
        *,
        chat: bool = True,
        continued: bool = False,
        **params: Any,
    ) -> list[Delta]:
        """Return the deltas of an answer to ``prompt`` for which the model would write ``text``."""
        seed = self.script.add(text)
        options = GenerationParams(**{"temperature": 0.0, "max_new_tokens": 200, "seed": seed} | params)
        full_prompt = Prompt([], ids_of(prompt), chat=chat, continued=continued, tools=tuple(tools))
        return list(self.engine.generate(full_prompt, options))


def parts_of(deltas: Sequence[Delta]) -> list[tuple[str, str]]:
    """Return the kinds and texts of an answer's parts, joined if they are of one kind. Calls are their names."""
    parts: list[tuple[str, str]] = []
    for delta in deltas:
        assert sum(map(bool, (delta.text, delta.thinking, delta.tool_calls))) <= 1
        for kind, text in (
            ("text", delta.text),
            ("thinking", delta.thinking),
            *(("call", call.name) for call in delta.tool_calls),
        ):
            if text and parts and parts[-1][0] == kind != "call":
                parts[-1] = kind, parts[-1][1] + text
            elif text:
                parts.append((kind, text))
    return parts


def thinking_tokens(deltas: Sequence[Delta]) -> int:
    return sum(delta.thinking_tokens for delta in deltas)
