"""Answers from a HuggingFace model: prefill, then one token a step, over a KV cache."""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from aiochatstream.engines.base import Delta, Engine, Prompt
from aiochatstream.engines.stop_strings import StopStrings
from aiochatstream.engines.transformers.detokenizing import detokenizer
from aiochatstream.engines.transformers.sampling import Sampler
from aiochatstream.params import GenerationParams

PREFILL_TOKENS = 256
"""A prompt is read in pieces of this many tokens, so that a client that leaves meanwhile is noticed."""


def is_loader(value: Any) -> bool:
    """Whether ``value`` is a function that loads something. (Models and tokenizers can be called, too.)"""
    return isinstance(value, functools.partial) or inspect.isroutine(value)


def is_on(model: Any, device: torch.device) -> bool:
    """Whether ``model`` is on ``device`` (any of its kind, where that names no index)."""
    return bool(model.device.type == device.type and device.index in (None, model.device.index))


class TransformersEngine(Engine):
    """Decodes each answer on its own, one forward pass of the model at a time.

    :param model: a loaded causal language model, or a function that loads one.
    :param tokenizer: its tokenizer, or a function that loads it.
    :param device: where the model is to run; None leaves it where it is.
    """

    def __init__(self, model: Any, tokenizer: Any, device: Any = None) -> None:
        self._model_source = model if is_loader(model) else lambda: model
        self._tokenizer_source = tokenizer if is_loader(tokenizer) else lambda: tokenizer
        self.loads_slowly = is_loader(model) or is_loader(tokenizer)
        self._device = device
        self._forward_pass = threading.Lock()

    def load(self) -> None:
        self.tokenizer = self._tokenizer_source()
        model = self._model_source()
        if self._device is not None and not is_on(model, torch.device(self._device)):
            model = model.to(self._device)
        self._model = model.eval()
        if "past_key_values" not in inspect.signature(model.forward).parameters:
            raise ValueError(f"{type(model).__name__} has no key-value cache of the usual kind and cannot be served.")
        self._forward_options: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            self._forward_options["logits_to_keep"] = 1
        self._eos_ids = self._find_eos_ids()
        text_config = model.config.get_text_config(decoder=True)
        self.max_context_len = getattr(text_config, "max_position_embeddings", None)
        for _ in self.generate(Prompt([], [min(self._eos_ids, default=0)] * 8), GenerationParams(max_new_tokens=2)):
            pass  # the first pass of all is slow: let it be over before someone waits for it

    def describe(self) -> dict[str, str]:
        model = self._model
        name = getattr(model.config, "name_or_path", "") or type(model).__name__
        return {
            "model": Path(name).name if Path(name).is_dir() else name,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
        }

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        length = len(prompt.token_ids)
        ids = torch.empty((1, length + params.max_new_tokens), dtype=torch.long, device=self._model.device)
        ids[0, :length] = torch.tensor(prompt.token_ids)
        sample = Sampler(params, ids.device)
        detokenize = detokenizer(self.tokenizer)
        stops = StopStrings(params.stop)
        cache = DynamicCache(config=self._model.config)

        for start in range(0, length, PREFILL_TOKENS):
            logits = self._forward(ids[:, start : min(start + PREFILL_TOKENS, length)], cache)
            yield Delta()

        for position in range(length, length + params.max_new_tokens):
            token_id = sample(ids[:, :position], logits)
            if token_id in self._eos_ids and not params.ignore_eos:
                yield Delta(stops.rest(), (token_id,), "stop")
                return
            text, stopped = stops.push(detokenize(token_id))
            if stopped:
                yield Delta(text, (token_id,), "stop")
                return
            if position == length + params.max_new_tokens - 1:
                yield Delta(text + stops.rest(), (token_id,), "length")
                return
            yield Delta(text, (token_id,))
            ids[0, position] = token_id
            logits = self._forward(ids[:, position : position + 1], cache)

    @torch.inference_mode()
    def _forward(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """Read ``ids`` [1, n] after what is in ``cache``; return the last position's logits [1, vocabulary]."""
        with self._forward_pass:
            start = time.perf_counter()
            output = self._model(input_ids=ids, past_key_values=cache, **self._forward_options)
            self.on_step("prefill" if ids.shape[1] > 1 else "decode", time.perf_counter() - start)
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _find_eos_ids(self) -> frozenset[int]:
        """Every end-of-sequence id that the model or the tokenizer knows."""
        sources = (self._model.generation_config, self._model.config, self.tokenizer)
        found: set[int] = set()
        for source in sources:
            ids = getattr(source, "eos_token_id", None)
            found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
        return frozenset(found)
