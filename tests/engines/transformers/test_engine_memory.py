"""Tests that engines return their memory: when they are closed, and when they cannot be loaded."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from aiochatstream import ChatStream, GenerationParams
from aiochatstream.engines.transformers import TransformersEngine
from aiochatstream.prompts.presets.base_model import ChatPromptCyberAgentOpenCalm
from tests.engines.transformers.engine_harness import answer
from tests.engines.transformers.tiny_models import BYTES, some_ids, tiny
from tests.helpers import PATIENCE

GREEDY = GenerationParams(max_new_tokens=200, temperature=0.0, ignore_eos=True)

Parts = dict[str, "weakref.ref[Any]"]


class Loader:
    """Loads tiny models, and remembers their parts without keeping them alive."""

    def __init__(self, family: str = "Llama") -> None:
        self._family = family
        self.parts: Parts = {}

    def load(self) -> Any:
        model = tiny(self._family, layers=2)
        layer, weight = next(model.children()), next(model.parameters())
        self._add(model=model, layer=layer, weight=weight)
        return model

    def engine(self, **options: Any) -> TransformersEngine:
        return TransformersEngine(self.load, lambda: BYTES, **options)

    def add_decoder(self, engine: TransformersEngine) -> None:
        """Remember the parts of a loaded engine's decoder, if it has one already."""
        decoder: Any = engine.decoder
        if decoder is None:
            return
        self._add(decoder=decoder)
        if hasattr(decoder, "kv_cache"):
            self._add(kv_cache=decoder.kv_cache, prefix_cache=decoder.prefix_cache)
            keys = [part for layer in decoder.kv_cache.layers for part in layer]
            states = list(decoder.kv_cache.states.tensors.values())
            self._add(**{f"part {number}": part for number, part in enumerate(keys + states)})

    def _add(self, **parts: Any) -> None:
        self.parts |= {name: weakref.ref(part) for name, part in parts.items()}

    def remaining(self) -> list[str]:
        """Return the parts that are in memory."""
        assert self.parts, "nothing was loaded"
        gc.collect()
        return [name for name, part in self.parts.items() if part() is not None]


@pytest.mark.parametrize("family", ["Llama", "LFM2", "Mamba"])
def test_a_closed_engine_keeps_no_memory(family: str) -> None:
    loader, threads = Loader(family), threading.active_count()
    engine = loader.engine()  # applications keep it
    for _ in range(2):
        engine.load(slots=2, context_len=256)
        loader.add_decoder(engine)
        assert len(answer(engine, some_ids(9), max_new_tokens=4, ignore_eos=True)) == 4
        assert set(loader.remaining()) == set(loader.parts)
        engine.close()
        assert loader.remaining() == []
        assert threading.active_count() == threads
    assert engine.describe() == {}


def test_an_engine_that_is_no_longer_used_keeps_no_memory() -> None:
    loader, threads = Loader(), threading.active_count()
    engine = loader.engine()
    engine.load(slots=2, context_len=256)
    loader.add_decoder(engine)
    del engine
    assert loader.remaining() == []
    assert threading.active_count() == threads


def test_a_request_that_is_still_read_does_not_keep_the_memory_of_a_closed_engine() -> None:
    loader = Loader()
    engine = loader.engine()
    engine.load(slots=2, context_len=256)
    loader.add_decoder(engine)
    assert engine.decoder is not None
    steps = engine.decoder.submit(some_ids(9), GREEDY).steps()
    next(steps)
    engine.close()
    assert loader.remaining() == []
    with pytest.raises(RuntimeError, match="closed"):
        list(steps)


@pytest.mark.parametrize("name", ["_create_batch", "_warm_up"])
@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_a_load_that_fails_keeps_no_memory(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: type[BaseException]
) -> None:
    loader, threads = Loader(), threading.active_count()
    engine = loader.engine()
    original: Callable[..., Any] = getattr(engine, name)

    def fail(*arguments: Any) -> None:
        result = original(*arguments)  # noqa: F841 - the traceback holds it
        loader.add_decoder(engine)
        raise kind

    with monkeypatch.context() as patch:
        patch.setattr(engine, name, fail)
        with pytest.raises(kind) as error:
            engine.load(slots=2, context_len=256)
    assert loader.remaining() == []
    assert error.value is not None  # which is still in memory
    assert threading.active_count() == threads
    engine.load(slots=2, context_len=256)
    assert len(answer(engine, some_ids(9), max_new_tokens=4, ignore_eos=True)) == 4
    engine.close()


def test_an_engine_that_is_closed_while_it_loads_keeps_no_memory() -> None:
    loader, threads = Loader(), threading.active_count()
    started, may_continue = threading.Event(), threading.Event()

    def load() -> Any:
        started.set()
        assert may_continue.wait(PATIENCE)
        return loader.load()

    engine = TransformersEngine(load, lambda: BYTES)
    loading = threading.Thread(target=engine.load, args=(2, 256))
    loading.start()
    assert started.wait(PATIENCE)
    engine.close()
    may_continue.set()
    loading.join(PATIENCE)
    assert loader.remaining() == []
    assert engine.decoder is None
    assert threading.active_count() == threads


async def test_a_chat_stream_that_has_ended_keeps_no_memory() -> None:
    loader = Loader()
    chat_stream = ChatStream(model=loader.load, tokenizer=lambda: BYTES, chat_prompt_clazz=ChatPromptCyberAgentOpenCalm)
    for _ in range(2):
        async with chat_stream:
            await chat_stream.wait_ready()
            engine = chat_stream.engine
            assert isinstance(engine, TransformersEngine)
            loader.add_decoder(engine)
            assert set(loader.remaining()) == set(loader.parts)
        assert loader.remaining() == []
