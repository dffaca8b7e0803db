"""The engine that generates answers with a HuggingFace model."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import time
import weakref
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from aiochatstream.engines.base import Delta, Engine, Prompt, TokenLogprob
from aiochatstream.engines.load_options import QUANTIZE_NAMES, Quantize
from aiochatstream.engines.token_sampler import TokenSampler
from aiochatstream.engines.transformers.answer_deltas import AnswerDeltas
from aiochatstream.engines.transformers.answer_format import AnswerFormat, find_template
from aiochatstream.engines.transformers.answer_phase import AnswerPhase
from aiochatstream.engines.transformers.answer_reader import AnswerReader, PlainReader
from aiochatstream.engines.transformers.batch import Batch
from aiochatstream.engines.transformers.batch_check import CannotBatch, is_distributed
from aiochatstream.engines.transformers.block_pool import BlockPool
from aiochatstream.engines.transformers.cpu.dtype_trial import LinearShape, is_slow, linear_shapes
from aiochatstream.engines.transformers.cpu.int8_linear import quantize_linears
from aiochatstream.engines.transformers.cpu.openmp import release_idle_threads
from aiochatstream.engines.transformers.cpu.packed_linear import prepack_linears
from aiochatstream.engines.transformers.custom_sampler import sample_function
from aiochatstream.engines.transformers.detokenizing import detokenizer
from aiochatstream.engines.transformers.generation_config import params_of
from aiochatstream.engines.transformers.grammars import Grammars, Matcher
from aiochatstream.engines.transformers.kv_cache import KVCache, block_size_of
from aiochatstream.engines.transformers.memory_plan import MemoryPlan, plan_memory
from aiochatstream.engines.transformers.packed_model import PackedModel
from aiochatstream.engines.transformers.prefix_cache import PrefixCache
from aiochatstream.engines.transformers.requirements import quantization_method
from aiochatstream.engines.transformers.sequential import SequentialDecoder, cache_token_bytes
from aiochatstream.engines.transformers.state_cache import StateCache
from aiochatstream.engines.transformers.step_errors import clear_frames
from aiochatstream.engines.transformers.weights import has_int8, weight_bytes
from aiochatstream.errors import ChatStreamError, EngineStopped
from aiochatstream.params import DEFAULT_CONTEXT_LEN, GenerationParams
from aiochatstream.texts import format_bytes

logger = logging.getLogger(__name__)

WARM_UP_TOKENS = 40
WARM_UP_PARAMS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0, "logprobs": 1},
    {"temperature": 1.0, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1},
)
"""Parameters of answers that are generated at load: the first passes are slow, and device errors appear early."""


class TransformersEngine(Engine):
    """Decodes all answers together, one forward pass per step. Models that cannot be batched decode sequentially.

    :param model: a causal language model, or a function that loads one. The engine owns it: while it serves, the engine
        replaces its attention and possibly its linear layers.
    :param tokenizer: the model's tokenizer, or a function that loads it.
    :param device: device to move the model to; None for its current device. It is ignored for a model whose layers
        were distributed over several devices (``device_map``).
    :param optimize: True stores the weights of linear layers in the layout of the CPU's kernels. Weights that the
        embedding shares are then stored twice.
    :param quantize: "int8" stores the weights of linear layers and of the embedding in int8 with a scale for each
        output: a quarter of the memory of float32, and faster answers. The rest of the model becomes
        float32. Requires a CPU with AVX2, and g++.
    :param kv_cache_bytes: size of the keys and values of all rows and of earlier prompts together, allocated at the
        start. Each answer takes what its prompt and max_new_tokens need; answers for which no memory is left wait. A
        context that does not fit is shortened. None for two contexts per row, at most half of the free memory.
    :param prefix_cache_bytes: maximum part of it for earlier prompts and answers, which use only what no running answer
        needs; 0 disables the cache. None for all of it.
    :param share_prefixes: True reuses the keys and values of other users' prompts. ``usage.cached_tokens`` and the time
        to the first token then reveal other users' texts. By default, users share only what the server puts before
        every conversation.
    :param max_step_ms: maximum milliseconds of a step that reads a prompt while other answers wait for their next
        token. (It reads at least 8 tokens.) None for twice the duration of a step without a prompt, and longer if
        several answers wait for their first token.
    :param compile: True compiles the model with torch.compile, which fuses the small operations between its linear
        layers, and on a CPU the attention of decoding rows. Requires torch 2.13; on a CPU also Linux, g++ and the
        Python headers. The first start takes a minute longer; later ones use torch's cache folder
        (TORCHINDUCTOR_CACHE_DIR).
    :param token_sampler: replaces the built-in sampler.
    :param response_template: marks of thoughts and tool calls in the model's answers, in transformers' format. None for
        the tokenizer's own; without one, for the template of the model's family, if it is known.
    """

    reads_messages = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        device: Any = None,
        *,
        optimize: bool = True,
        quantize: Quantize | None = None,
        kv_cache_bytes: int | None = None,
        prefix_cache_bytes: int | None = None,
        share_prefixes: bool = False,
        max_step_ms: float | None = None,
        compile: bool = False,  # noqa: A002 - the name in transformers and torch
        token_sampler: TokenSampler | None = None,
        response_template: dict[str, Any] | None = None,
    ) -> None:
        if quantize not in (None, *QUANTIZE_NAMES):
            raise ValueError(f"quantize: must be None or {' or '.join(QUANTIZE_NAMES)}, not {quantize!r}.")
        for name, value in (("kv_cache_bytes", kv_cache_bytes), ("max_step_ms", max_step_ms)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}: must be above 0, not {value!r}.")
        if prefix_cache_bytes is not None and prefix_cache_bytes < 0:
            raise ValueError(f"prefix_cache_bytes: must be 0 or more, not {prefix_cache_bytes!r}.")
        self._model_source = model if is_loader(model) else lambda: model
        self._tokenizer_source = tokenizer if is_loader(tokenizer) else lambda: tokenizer
        self.loads_slowly = is_loader(model) or is_loader(tokenizer)
        self._device, self._optimize, self._compile = device, optimize, compile
        self._quantize = quantize
        self._kv_cache_bytes, self._prefix_cache_bytes = kv_cache_bytes, prefix_cache_bytes
        self._share_prefixes = share_prefixes
        self.decoder: Batch | SequentialDecoder | None = None
        """Decoder of the loaded model; None before :meth:`load` and after :meth:`close`."""
        self.quantization: str | None = None
        """Method of quantisation, of the checkpoint or ``quantize``; None without one. Set by :meth:`load`."""
        self.has_slow_dtype = False
        """True if the CPU computes faster in float32 than in the model's dtype. Set by :meth:`load`."""
        self.linear_shapes: tuple[LinearShape, ...] = ()
        """Shapes of the linear layers of a model on a CPU; otherwise empty. Set by :meth:`load`."""
        self.batch_obstacle: str | None = None
        """Reason why requests are decoded one at a time; None if they are batched. Set by :meth:`load`."""
        self.kv_token_bytes: int | None = None
        """Bytes of the keys and values of a token; None if unknown. Set by :meth:`load`."""
        self.max_kv_cache_bytes: int | None = None
        """Maximum size of the keys and values of all rows; None if unknown. Set by :meth:`load`."""
        self._closed = False
        self._model: Any = None
        self._grammars: Grammars | None = None
        self._answer_format: AnswerFormat | None = None
        self._own_template = response_template
        self._close_batch: weakref.finalize[..., Any] | None = None
        self._restore_model = ExitStack()
        """Restores the model's own attention and modules with states."""
        self._max_step = None if max_step_ms is None else max_step_ms / 1000
        self._sample = sample_function(token_sampler)
        release_idle_threads()  # this thread has most likely created the model

    def unavailable(self) -> ChatStreamError | None:
        if self.decoder is None or not self.decoder.stopped:
            return None
        return EngineStopped("The engine has stopped; see the server's log.", retry_after=60)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids of the tokens that end an answer. Set by :meth:`load`."""
        return self._eos_ids

    def load(self, slots: int, context_len: int | None) -> None:
        self._closed = False
        self.batch_obstacle = self.kv_token_bytes = self.max_kv_cache_bytes = self.kv_cache_tokens = None
        try:
            self._load(slots, context_len)
        except BaseException as error:
            clear_frames(error)  # their local variables hold the model
            self.close()
            raise
        if self._closed:  # while it was loading
            self.close()

    def _load(self, slots: int, context_len: int | None) -> None:
        self.tokenizer = self._tokenizer_source()
        model = self._model_source()
        if self._device is not None:
            model = move(model, torch.device(self._device))
        self._model = model.eval()
        self.quantization = "int8" if has_int8(model) else quantization_method(model.config.to_dict())
        self.linear_shapes = linear_shapes(model) if model.device.type == "cpu" else ()
        measured = self._quantize is None and bool(self.linear_shapes)
        self.has_slow_dtype = measured and is_slow(self.linear_shapes, model.dtype)
        if self._quantize is not None:
            self._quantize_model()
        self._weight_bytes = weight_bytes(model)  # before layers are replaced
        if self.has_slow_dtype:
            dtype = str(model.dtype).removeprefix("torch.")
            logger.warning("%s is slow on this CPU. Load the model with dtype=torch.float32.", dtype)
        self.default_params = params_of(model.generation_config)
        self._eos_ids = self._find_eos_ids()
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        self._special_tokens = {id_: str(token) for id_, token in added.items() if token.special}
        self.response_template = find_template(self.tokenizer, model.config.model_type, self._own_template)
        template = self.response_template
        self._answer_format = None if template is None else AnswerFormat(self.tokenizer, template)
        self._embeddings = getattr(model.get_input_embeddings(), "num_embeddings", sys.maxsize)
        outputs = getattr(model.get_output_embeddings(), "out_features", sys.maxsize)
        vocab_size = min(self._embeddings, outputs)
        self.vocab_size = None if vocab_size == sys.maxsize else vocab_size
        text_config = model.config.get_text_config(decoder=True)
        self.max_context_len = getattr(text_config, "max_position_embeddings", None)
        limit = self.max_context_len or context_len or DEFAULT_CONTEXT_LEN
        length = limit if context_len is None else min(context_len, limit)
        try:
            self.decoder = self._create_batch(slots, length)
        except CannotBatch as error:
            kind = f"{type(model).__name__}{', not compiled,' if self._compile else ''}"
            self.batch_obstacle = str(error)  # log records would keep the error itself, whose frames hold the model
            logger.warning("%s cannot be batched (%s); requests are decoded one at a time.", kind, self.batch_obstacle)
            self.decoder = SequentialDecoder(model, self.on_step, self._sample)
            token_bytes = cache_token_bytes(text_config, model.dtype)
            if context_len is None and token_bytes:  # its caches grow with the answers, without a limit of their own
                length = self._plan_memory(length, slots, token_bytes).context_len
        self._grammars = Grammars(self.tokenizer, self.vocab_size, self._eos_ids)
        self._warm_up(min(WARM_UP_TOKENS, min(length, self.max_context_len or length) - 2))

    def close(self) -> None:
        """End the decode thread and release the model and the caches, also if an application keeps this object."""
        self._closed = True
        self.decoder = self._model = None
        if self._close_batch is not None:
            self._close_batch()
        self._restore_model.close()
        if self._grammars is not None:
            self._grammars.close()

    def share(self, token_ids: list[int]) -> None:
        if self.decoder is not None and token_ids:
            self.decoder.share(token_ids)

    def forget(self, owner: str) -> None:
        if self.decoder is not None:
            self.decoder.forget(owner)

    def tokens_needed(self, prompt_tokens: int, max_new_tokens: int) -> int:
        if not isinstance(self.decoder, Batch):
            return prompt_tokens + max_new_tokens
        cache = self.decoder.kv_cache
        # the last token is not read; to read a prompt only, a token is generated
        return cache.blocks_for(prompt_tokens + max(1, max_new_tokens) - 1) * cache.block_size

    def metrics(self) -> dict[str, float]:
        return {} if self.decoder is None else self.decoder.metrics()

    def gpu_memory(self) -> list[tuple[int, int, int]]:
        memory = [(index, *torch.cuda.mem_get_info(index)) for index in range(torch.cuda.device_count())]
        return [(index, total, total - free) for index, free, total in memory]

    def describe(self) -> dict[str, str]:
        model = self._model
        if model is None:
            return {}
        name = getattr(model.config, "name_or_path", "") or type(model).__name__
        dtype = str(model.dtype).removeprefix("torch.")
        return {
            "model": Path(name).name if Path(name).is_dir() else name,
            "device": str(model.device),
            "dtype": dtype if self.quantization is None else f"{dtype}, {self.quantization}",
            "weights": format_bytes(self._weight_bytes),
        }

    def check(self, params: GenerationParams) -> None:
        """Compile the constraint, unless it was compiled before."""
        if params.constraint is not None and self._grammars is not None:
            self._grammars.check(params.constraint)

    def checks_quickly(self, params: GenerationParams) -> bool:
        return params.constraint is None or self._grammars is None or self._grammars.knows(params.constraint)

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        if self.decoder is None or self._grammars is None:
            raise RuntimeError("The engine is not loaded.")
        self._check_ids(prompt, params)
        # special tokens have no text
        stop_ids = {id_ for id_, name in self._special_tokens.items() if name in params.stop} if params.stop else ()
        eos_ids = () if params.ignore_eos else self._eos_ids
        deltas = AnswerDeltas(self._reader(prompt), params.stop, stop_ids, eos_ids)
        owner = "" if self._share_prefixes else prompt.owner
        matcher = self._matcher(prompt, params)
        answer = self.decoder.submit(prompt.token_ids, params, matcher, owner, prompt.shared_tokens)
        left = params.max_new_tokens
        cached_tokens = 0
        if params.prompt_logprobs:
            yield Delta(logprobs=(TokenLogprob(prompt.token_ids[0], 0.0),))
        with closing(answer.steps()) as steps:
            for token_id in steps:
                if answer.cached_tokens != cached_tokens:
                    cached_tokens = answer.cached_tokens
                    yield Delta(cached_tokens=cached_tokens)
                if count := len(answer.prompt_logprobs):
                    yield Delta(logprobs=tuple(answer.prompt_logprobs.popleft() for _ in range(count)))
                if token_id is None:
                    yield Delta()
                    continue
                left -= 1
                logprobs = () if params.logprobs is None else (answer.logprobs.popleft(),)
                yield from deltas.step(token_id, logprobs, last=not left)
                if deltas.finished:
                    return

    def read(self, prompt: Prompt, token_ids: Sequence[int]) -> list[Delta]:
        """Return the deltas of an answer that consists of ``token_ids``, as :meth:`generate` yields them."""
        answer = AnswerDeltas(self._reader(prompt), (), (), self._eos_ids)
        deltas: list[Delta] = []
        for left, token_id in zip(range(len(token_ids) - 1, -1, -1), token_ids, strict=True):
            deltas += answer.step(token_id, last=not left)
            if answer.finished:
                break
        return deltas

    def _reader(self, prompt: Prompt) -> AnswerReader:
        """Return the reader of a new answer."""
        if prompt.chat and self._answer_format is not None:
            return self._answer_format.reader(prompt)
        return PlainReader(detokenizer(self.tokenizer, prompt.token_ids if prompt.continued else ()))

    def _matcher(self, prompt: Prompt, params: GenerationParams) -> Matcher | AnswerPhase | None:
        """Return the constraint of the tokens of a new answer."""
        grammars = self._grammars
        matcher = None if params.constraint is None or grammars is None else grammars.matcher(params.constraint)
        if self._answer_format is None or not prompt.chat:
            return matcher
        if matcher is None and params.max_thinking_tokens is None:
            return None
        vocab_size = max(self.vocab_size or 0, len(self.tokenizer))
        return AnswerPhase(self._answer_format, prompt, params, matcher, self._eos_ids, vocab_size)

    def _check_ids(self, prompt: Prompt, params: GenerationParams) -> None:
        """Raise ValueError for an empty prompt or an invalid token id, which on a GPU would be a permanent error."""
        if not prompt.token_ids:
            raise ValueError("The prompt is empty.")
        highest = max(prompt.token_ids)
        if highest >= self._embeddings:
            raise ValueError(f"Token id {highest} is out of range; the vocabulary has {self._embeddings} tokens.")
        if params.logit_bias and max(params.logit_bias) >= (self.vocab_size or sys.maxsize):
            raise ValueError(
                f"logit_bias: token id {max(params.logit_bias)} is out of range; "
                f"the vocabulary has {self.vocab_size} tokens."
            )

    def _create_batch(self, rows: int, context_len: int) -> Batch:
        """Set the model up for batching. Raise CannotBatch, which leaves the model unchanged."""
        model = self._model
        packed = PackedModel(model, self._embeddings, context_len)
        self._restore_model.callback(packed.restore)
        if self._optimize and model.device.type == "cpu":
            prepack_linears(model)
        kernel = packed.choose_kernel()
        forward = packed.compile(kernel) if self._compile else packed.forward
        token_bytes = sum(part[0, :, 0].nbytes for layer in packed.layers for part in layer)
        block_size = block_size_of(kernel)
        state_bytes = sum(state.nbytes for state in packed.states.values())
        plan = self._plan_memory(context_len, rows, token_bytes, block_size, state_bytes)
        states = StateCache(packed.states, rows, plan.snapshots)
        kv_cache = KVCache(packed.layers, states, rows=rows, length=plan.context_len, tokens=plan.tokens, kernel=kernel)
        pool = BlockPool(kv_cache.blocks)
        max_bytes = self._prefix_cache_bytes
        limit = pool.count if max_bytes is None else max_bytes // max(token_bytes * block_size, 1)
        batch = Batch(
            forward,
            kv_cache,
            rows,
            PrefixCache(pool, block_size, limit, states),
            model.device,
            model.dtype,
            self.on_step,
            self._max_step,
            self._sample,
        )
        # also at the interpreter's exit, which torch's threads do not survive
        self._close_batch = weakref.finalize(self, batch.close)
        return batch

    def _plan_memory(
        self, context_len: int, rows: int, token_bytes: int, block_size: int = 1, state_bytes: int = 0
    ) -> MemoryPlan:
        """Return the sizes of the caches, and set the attributes that depend on them."""
        plan = plan_memory(
            self._model.device,
            self._kv_cache_bytes,
            rows=rows,
            context_len=context_len,
            token_bytes=token_bytes,
            block_size=block_size,
            state_bytes=state_bytes,
            caches_prefixes=self._prefix_cache_bytes != 0,
        )
        self.kv_token_bytes, self.max_kv_cache_bytes, self.kv_cache_tokens = token_bytes, plan.max_bytes, plan.tokens
        if plan.context_len < context_len:
            logger.warning("The KV cache limits the context to %d tokens instead of %d.", plan.context_len, context_len)
            self.max_context_len = plan.context_len
        return plan

    def _quantize_model(self) -> None:
        """Convert linear layers to int8. Raise ValueError if that is impossible, RuntimeError if the compiler fails."""
        if has_int8(self._model):  # an earlier load has converted it
            return
        if self.quantization is not None:
            raise ValueError(f"quantize: must be absent for a checkpoint that is quantised ({self.quantization}).")
        start = time.perf_counter()
        try:
            count = quantize_linears(self._model)
        except OSError as error:
            raise RuntimeError(f"quantize: int8 requires code that g++ cannot compile here ({error}).") from error
        self.quantization = self._quantize
        logger.info("Converted %d linear layers to int8 in %.1f s", count, time.perf_counter() - start)

    def _warm_up(self, prompt_tokens: int) -> None:
        for options in WARM_UP_PARAMS if prompt_tokens > 0 else ():
            params = GenerationParams(max_new_tokens=3, ignore_eos=True, **options)
            deque(self.generate(Prompt([], [0] * prompt_tokens, chat=False), params), maxlen=0)
        release_idle_threads()

    def _find_eos_ids(self) -> frozenset[int]:
        """Return all end-of-sequence ids of the model's configurations and the tokenizer."""
        eos_ids: set[int] = set()
        for source in (self._model.generation_config, self._model.config, self.tokenizer):
            ids = getattr(source, "eos_token_id", None)
            eos_ids.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
        return frozenset(eos_ids)


def is_loader(value: Any) -> bool:
    """Return True if ``value`` is a function that loads something. (Models and tokenizers are callable as well.)"""
    return isinstance(value, functools.partial) or inspect.isroutine(value)


def is_on(model: Any, device: torch.device) -> bool:
    """Return True if ``model`` is on ``device``. A device without an index matches all devices of its type."""
    return bool(model.device.type == device.type and device.index in (None, model.device.index))


def move(model: Any, device: torch.device) -> Any:
    """Return ``model`` on ``device``, unless ``device_map`` distributed its layers over several devices."""
    if is_on(model, device):
        return model
    if is_distributed(model):
        logger.warning("device: %s is ignored, because device_map distributed the layers of the model.", device)
        return model
    return model.to(device)
