"""Answers from a HuggingFace model."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import weakref
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from aiochatstream.engines.base import Delta, Engine, Prompt, TokenLogprob
from aiochatstream.engines.stop_strings import StopStrings
from aiochatstream.engines.token_sampler import TokenSampler
from aiochatstream.engines.transformers import attention
from aiochatstream.engines.transformers.attention import Piece, Step, attending
from aiochatstream.engines.transformers.batch import Batch
from aiochatstream.engines.transformers.cpu.openmp import release_helpers
from aiochatstream.engines.transformers.cpu.prepacked_linear import pack_linears
from aiochatstream.engines.transformers.custom_ops import own_errors
from aiochatstream.engines.transformers.custom_sampler import drawing
from aiochatstream.engines.transformers.detokenizing import detokenizer
from aiochatstream.engines.transformers.grammars import Grammars
from aiochatstream.engines.transformers.kv_cache import SlotCache
from aiochatstream.engines.transformers.loading import cpu_computes
from aiochatstream.engines.transformers.prefix_cache import PrefixPool
from aiochatstream.engines.transformers.sequential import Alone
from aiochatstream.params import GenerationParams

logger = logging.getLogger(__name__)

CACHE_SHARE, POOL_SHARE = 0.5, 0.25
"""Of the memory that is free when the model is loaded: the most that rows, and kept prefixes, take by default."""

BATCHED_LAYERS = {"full_attention", "sliding_attention"}
GROWING_ROPES = {"dynamic", "longrope"}
"""Kinds of positions that depend on the longest sequence of a batch."""

CHECK_TOKENS = 100
CHECK_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
"""How far logits may be from those expected, in parts of their own spread. In half precision each way to compute the
same has errors of its own, about a tenth; what is really different is as far away as anything: 1.4."""
CHECK_TOLERANCE_HALF = 0.5
WARM_UP = 40
"""Tokens."""
WARM_UP_PARAMS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0, "logprobs": 1},
    {"temperature": 1.0, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1},
)
"""Answers of all kinds, made at load: the first passes are slow, and what this device cannot do is to show at once."""

COMPILING_TAKES = "It takes torch 2.13 and, on a CPU, Linux with g++ and Python's headers."

LEAST_CONTEXT = 16
"""Tokens of a row. A cache with less is refused."""


def is_loader(value: Any) -> bool:
    """Whether ``value`` is a function that loads something. (Models and tokenizers can be called, too.)"""
    return isinstance(value, functools.partial) or inspect.isroutine(value)


def is_on(model: Any, device: torch.device) -> bool:
    """Whether ``model`` is on ``device`` (any of its kind, where that names no index)."""
    return bool(model.device.type == device.type and device.index in (None, model.device.index))


class CannotBatch(Exception):
    """Why the rows of a model cannot be computed in one forward pass."""


class PackedForward:
    """Runs a model over a step. Apart from the engine, so that an engine that is dropped can go.

    :param compiled: by torch.compile, at the first call; it takes the better part of a minute.
    """

    def __init__(self, model: Any, *, compiled: bool = False) -> None:
        self._model = model
        self._no_mask = torch.empty(1, 1, 1, 1, device=model.device)  # four dimensions: the model makes none of its own
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._compiled, self._compute = compiled, self._run
        if compiled:
            compile_: Any = torch.compile  # its types lag behind
            self._compute = compile_(
                self._run,
                fullgraph=True,
                dynamic=True,
                isolate_recompiles=True,  # another engine's model is none of its business
                options={"guard_filter_fn": _guards, "cpp_wrapper": model.device.type == "cpu"},
            )

    def __call__(self, step: Step) -> torch.Tensor:
        """The logits [tokens, vocabulary] of the step's tokens whose logits are wanted."""
        inputs = [step.ids, step.positions, step.last]
        if self._compiled:  # what is made for all sizes is for two or more
            inputs = [one if one.shape[-1] > 1 else torch.cat((one, one), -1) for one in inputs]
        with own_errors(), attending(step):
            return self._compute(*inputs)[: len(step.last)]

    def _run(self, ids: torch.Tensor, positions: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        output = self._model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=self._no_mask,
            use_cache=False,
            packed=True,
            **({"logits_to_keep": last} if self._keeps_logits else {}),
        )
        logits: torch.Tensor = output.logits[0] if self._keeps_logits else output.logits[0, last]
        return logits


def _guards(entries: Sequence[Any]) -> list[bool]:
    """What a compiled model looks at to see whether it still fits: its inputs. The model and torch's settings do not
    change any more, and to look at all of them takes as long as some of the layers."""
    compiler: Any = torch.compiler  # it has no types
    tensors = compiler.keep_tensor_guards_unsafe(entries)
    return [kept or entry.guard_type == "SHAPE_ENV" for kept, entry in zip(tensors, entries, strict=True)]


class TransformersEngine(Engine):
    """Decodes all answers together, in one forward pass a step; models that cannot do that, each on its own.

    :param model: a loaded causal language model, or a function that loads one. It is taken over: while it serves, its
        attention is the engine's own, and its linear layers may be replaced.
    :param tokenizer: its tokenizer, or a function that loads it.
    :param device: where the model is to run; None leaves it where it is.
    :param optimize: lay out the weights of linear layers for the CPU's kernels, in place of the plain ones. Those that
        the embedding shares are then held twice.
    :param kv_cache_bytes: for the keys and values of the rows, all taken at the start. None: as much as all rows of
        the context's length need, at most half of the memory that is then free. With less, the context is shorter.
    :param prefix_cache_bytes: for what is kept of earlier prompts and answers; 0 keeps nothing. None: at most a
        quarter of the memory that is free at the start.
    :param share_prefixes: whether a user's prompt may begin with what was computed for another user's. It shows in
        ``usage.cached_tokens`` and in the time to the first token, by which users can find out what others have said.
        False keeps users apart: they share only what the server itself puts before every conversation.
    :param max_step_ms: milliseconds that a step should take at most which reads a prompt while others wait for their
        next token. (It reads 8 tokens or more.)
        None: twice as long as a step that reads none, and longer where several wait for a first token.
    :param compile: the model, by torch.compile, which joins the small operations between its linear layers, and on a
        CPU the attention of rows that decode. Takes torch 2.13, on a CPU Linux with g++ and Python's headers, and a
        minute at the first start; later ones find what torch has kept in its cache folder (TORCHINDUCTOR_CACHE_DIR).
    :param token_sampler: chooses the tokens, in place of the built-in sampler.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        device: Any = None,
        *,
        optimize: bool = True,
        kv_cache_bytes: int | None = None,
        prefix_cache_bytes: int | None = None,
        share_prefixes: bool = False,
        max_step_ms: float | None = None,
        compile: bool = False,  # noqa: A002 - transformers' and torch's word for it
        token_sampler: TokenSampler | None = None,
    ) -> None:
        for name, value in (("kv_cache_bytes", kv_cache_bytes), ("max_step_ms", max_step_ms)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}: must be above 0, not {value!r}.")
        if prefix_cache_bytes is not None and prefix_cache_bytes < 0:
            raise ValueError(f"prefix_cache_bytes: must be 0 or more, not {prefix_cache_bytes!r}.")
        self._model_source = model if is_loader(model) else lambda: model
        self._tokenizer_source = tokenizer if is_loader(tokenizer) else lambda: tokenizer
        self.loads_slowly = is_loader(model) or is_loader(tokenizer)
        self._device, self._optimize, self._compile = device, optimize, compile
        self._kv_cache_bytes, self._prefix_cache_bytes = kv_cache_bytes, prefix_cache_bytes
        self._share_prefixes = share_prefixes
        self._answers: Batch | Alone | None = None
        self._grammars: Grammars | None = None
        self._end: weakref.finalize[..., Any] | None = None
        self._max_step = None if max_step_ms is None else max_step_ms / 1000
        self._draw = drawing(token_sampler)
        release_helpers()  # of the thread that has made the model, most likely

    @property
    def stopped(self) -> bool:
        return self._answers is not None and self._answers.stopped

    def load(self, slots: int, context_len: int) -> None:
        self.tokenizer = self._tokenizer_source()
        model = self._model_source()
        if self._device is not None and not is_on(model, torch.device(self._device)):
            model = model.to(self._device)
        self._model = model.eval()
        if model.device.type == "cpu" and not cpu_computes(model.dtype):
            dtype = str(model.dtype).removeprefix("torch.")
            logger.warning("This CPU computes slowly in %s. Load the model with dtype=torch.float32.", dtype)
        self._eos_ids = self._find_eos_ids()
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        self._special_ids = {str(token): id_ for id_, token in added.items() if token.special}
        self._vocabulary = getattr(model.get_input_embeddings(), "num_embeddings", sys.maxsize)
        outputs = getattr(model.get_output_embeddings(), "out_features", sys.maxsize)
        known = min(self._vocabulary, outputs)
        self.vocabulary = None if known == sys.maxsize else known
        text_config = model.config.get_text_config(decoder=True)
        self.max_context_len = getattr(text_config, "max_position_embeddings", None)
        try:
            self._answers = self._batch(slots, min(context_len, self.max_context_len or context_len))
        except CannotBatch as reason:
            kind = f"{type(model).__name__}{', not compiled,' if self._compile else ''}"
            logger.warning("%s answers one request a step: %s.", kind, reason)
            self._answers = Alone(model, self.on_step, self._draw)
        self._grammars = Grammars(self.tokenizer, self.vocabulary, self._eos_ids)
        length = min(WARM_UP, min(context_len, self.max_context_len or context_len) - 2)
        for options in WARM_UP_PARAMS if length > 0 else ():
            params = GenerationParams(max_new_tokens=3, ignore_eos=True, **options)
            deque(self.generate(Prompt([], [0] * length), params), maxlen=0)
        release_helpers()

    def close(self) -> None:
        self._answers = None
        if self._end is not None:
            self._end()
        if self._grammars is not None:
            self._grammars.close()

    def share(self, token_ids: list[int]) -> None:
        if self._answers is not None and token_ids:
            self._answers.share(token_ids)

    def forget(self, owner: str) -> None:
        if self._answers is not None:
            self._answers.forget(owner)

    def figures(self) -> dict[str, float]:
        return {} if self._answers is None else self._answers.figures()

    def gpu_memory(self) -> list[tuple[int, int, int]]:
        memory = [(index, *torch.cuda.mem_get_info(index)) for index in range(torch.cuda.device_count())]
        return [(index, total, total - free) for index, free, total in memory]

    def describe(self) -> dict[str, str]:
        model = self._model
        name = getattr(model.config, "name_or_path", "") or type(model).__name__
        return {
            "model": Path(name).name if Path(name).is_dir() else name,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
        }

    def check(self, params: GenerationParams) -> None:
        """Try to compile the constraint, if it is an unknown one."""
        if params.constraint is not None and self._grammars is not None:
            self._grammars.check(params.constraint)

    def checks_quickly(self, params: GenerationParams) -> bool:
        return params.constraint is None or self._grammars is None or self._grammars.knows(params.constraint)

    def generate(self, prompt: Prompt, params: GenerationParams) -> Generator[Delta, None, None]:
        if self._answers is None or self._grammars is None:
            raise RuntimeError("The engine is not loaded.")
        if not prompt.token_ids:
            raise ValueError("The prompt is empty.")
        if max(prompt.token_ids) >= self._vocabulary:  # would fail the whole step, on a GPU for good
            raise ValueError(f"Token {max(prompt.token_ids)} is none of the model's {self._vocabulary}.")
        if params.logit_bias and max(params.logit_bias) >= (self.vocabulary or sys.maxsize):
            raise ValueError(
                f"logit_bias: {max(params.logit_bias)} is none of the model's {self.vocabulary} token ids."
            )
        text_of = detokenizer(self.tokenizer, prompt.token_ids if prompt.continued else ())
        stops = StopStrings(params.stop)
        stop_ids = {self._special_ids[stop] for stop in params.stop if stop in self._special_ids}  # they have no text
        matcher = None if params.constraint is None else self._grammars.matcher(params.constraint)
        owner = "" if self._share_prefixes else prompt.owner
        answer = self._answers.answer(prompt.token_ids, params, matcher, owner, prompt.shared)
        left = params.max_new_tokens
        reused = 0
        if params.prompt_logprobs:
            yield Delta(logprobs=(TokenLogprob(prompt.token_ids[0], 0.0),))
        with closing(answer.steps()) as steps:
            for token_id in steps:
                if answer.reused != reused:
                    reused = answer.reused
                    yield Delta(cached_tokens=reused)
                if known := len(answer.prompt_logprobs):
                    yield Delta(logprobs=tuple(answer.prompt_logprobs.popleft() for _ in range(known)))
                if token_id is None:
                    yield Delta()
                    continue
                left -= 1
                logprobs = () if params.logprobs is None else (answer.logprobs.popleft(),)
                if token_id in stop_ids or (token_id in self._eos_ids and not params.ignore_eos):
                    text, _ = stops.push(text_of.end())
                    yield Delta(text + stops.rest(), (token_id,), "stop", logprobs=logprobs)
                    return
                text, stopped = stops.push(text_of.step(token_id))
                if stopped:
                    yield Delta(text, (token_id,), "stop", logprobs=logprobs)
                    return
                if not left:  # in a character, maybe: half of it is not told, so that the answer can be continued
                    yield Delta(text + stops.rest(), (token_id,), "length", logprobs=logprobs)
                    return
                yield Delta(text, (token_id,), logprobs=logprobs)

    def _batch(self, rows: int, context_len: int) -> Batch:
        """Set the model up for rows that decode together. Raises CannotBatch, and has then changed nothing."""
        model = self._model
        device, dtype = model.device, model.dtype
        implementation = model.config._attn_implementation
        forward = PackedForward(model)
        try:
            like, expected = self._look_at()
            model.set_attn_implementation(attention.NAME)
            self._check(forward, SlotCache(like, 2, CHECK_TOKENS), expected)
        except Exception as error:
            if model.config._attn_implementation != implementation:
                model.set_attn_implementation(implementation)
            if isinstance(error, CannotBatch):
                raise
            raise CannotBatch(f"its forward pass does not take packed rows ({error!r})") from error
        if self._optimize and device.type == "cpu":
            pack_linears(model)
        if self._compile:
            logger.info("Compiling %s", type(model).__name__)
            try:
                forward = PackedForward(model, compiled=True)
                self._check(forward, SlotCache(like, 2, CHECK_TOKENS, native=True), expected)
            except Exception as error:
                reason = (str(error).strip() or repr(error)).splitlines()[0]
                needs = "" if isinstance(error, CannotBatch) else f" {COMPILING_TAKES}"
                raise RuntimeError(
                    f"compile: {type(model).__name__} cannot be compiled here ({reason}).{needs}"
                ) from error
        free = free_bytes(device)
        token_bytes = sum(one[0, :, 0].nbytes for layer in like for one in layer)
        allowed = int(free * CACHE_SHARE) if self._kv_cache_bytes is None else self._kv_cache_bytes
        length = min(context_len, allowed // (token_bytes * rows))
        if length < min(LEAST_CONTEXT, context_len):
            raise ValueError(
                f"kv_cache_bytes: {allowed} bytes have room for {length} tokens in each of {rows} rows; "
                f"{LEAST_CONTEXT} of them take {LEAST_CONTEXT * token_bytes * rows}."
            )
        if length < context_len:
            logger.warning("The context is %d tokens long, not %d: more does not fit into memory.", length, context_len)
            self.max_context_len = length
        cache = SlotCache(like, rows, length, native=self._compile)
        pool_bytes = int(free * POOL_SHARE) if self._prefix_cache_bytes is None else self._prefix_cache_bytes
        pool = PrefixPool(like, pool_bytes)
        batch = Batch(forward, cache, rows, pool, device, dtype, self.on_step, self._max_step, self._draw)
        # also at the interpreter's end, which torch's threads do not survive
        self._end = weakref.finalize(self, batch.close)
        return batch

    @torch.inference_mode()
    def _look_at(self) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[torch.Tensor]]:
        """What the model computes for two short sequences: keys and values of each layer, and the last logits."""
        model = self._model
        config = model.config.get_text_config(decoder=True)
        if (
            not model._supports_attention_backend
            or "past_key_values" not in inspect.signature(model.forward).parameters
        ):
            raise CannotBatch("its attention cannot be replaced")
        if not set(getattr(config, "layer_types", None) or BATCHED_LAYERS) <= BATCHED_LAYERS:
            raise CannotBatch("it has layers that are no attention, or attend in chunks")
        ropes = getattr(config, "rope_parameters", None) or {}
        kinds = {one.get("rope_type") for one in (ropes, *ropes.values()) if isinstance(one, dict)}
        if kinds & GROWING_ROPES:
            raise CannotBatch("its positions depend on the longest sequence")
        expected = []
        for ids in self._check_sequences():
            cache = DynamicCache(config=model.config)
            inputs = torch.tensor([ids], device=model.device)
            expected.append(model(input_ids=inputs, past_key_values=cache, use_cache=True).logits[0, -1])
        if not all(isinstance(layer, DynamicLayer) and layer.keys is not None for layer in cache.layers):
            raise CannotBatch("it keeps more than keys and values")
        return [(layer.keys, layer.values) for layer in cache.layers], expected

    @torch.inference_mode()
    def _check(self, forward: PackedForward, cache: SlotCache, expected: list[torch.Tensor]) -> None:
        """Compute the same two sequences packed, in several pieces, and compare."""
        long, short = self._check_sequences()
        where = self._model.device, self._model.dtype
        first = Step(cache, [Piece(0, 0, long[:-1]), Piece(1, 0, short[:40])], *where)
        forward(first)
        if self._has_window() and first.windows == {None}:
            raise CannotBatch("its attention does not tell how far it sees")
        found = forward(Step(cache, [Piece(0, len(long) - 1, long[-1:]), Piece(1, 40, short[40:])], *where))
        allowed = CHECK_TOLERANCE.get(where[1], CHECK_TOLERANCE_HALF)
        for wanted, logits in zip(expected, found, strict=True):
            if not (logits - wanted).float().norm() <= allowed * (wanted - wanted.mean()).float().norm():
                raise CannotBatch("packed rows change its answers")

    def _check_sequences(self) -> tuple[list[int], list[int]]:
        """Two, of tokens all over the vocabulary: what repeats itself is computed with much larger errors."""
        ids = [at * 104_729 % min(self._vocabulary, 2**31) for at in range(3, 3 + CHECK_TOKENS)]
        return ids, ids[1:60]

    def _has_window(self) -> bool:
        """Whether tokens of some layers see only so many before them."""
        config = self._model.config.get_text_config(decoder=True)
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        return window is not None and "sliding_attention" in kinds

    def _find_eos_ids(self) -> frozenset[int]:
        """Every end-of-sequence id that the model or the tokenizer knows."""
        sources = (self._model.generation_config, self._model.config, self.tokenizer)
        found: set[int] = set()
        for source in sources:
            ids = getattr(source, "eos_token_id", None)
            found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
        return frozenset(found)


def free_bytes(device: torch.device) -> int:
    """Memory that can be taken, now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
