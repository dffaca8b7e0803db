"""An engine of the small model that the servers of many tests share: loading it takes seconds."""

from __future__ import annotations

from typing import Any

from aiochatstream import TransformersEngine
from aiochatstream.engines.base import StepKind

SLOTS, CONTEXT = 4, 2048


class SmallEngine(TransformersEngine):
    """An engine that is loaded once. Servers neither load nor close it, but receive its steps, one server at a time."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self._report = self.on_step
        self.on_step = self._forward_step
        super().load(SLOTS, CONTEXT)

    def _forward_step(self, kind: StepKind, seconds: float) -> None:
        self._report(kind, seconds)

    def load(self, slots: int, context_len: int | None) -> None:
        assert slots <= SLOTS
        assert (context_len or CONTEXT + 1) <= CONTEXT
        self._report = self.on_step  # the server's

    def close(self) -> None:
        pass

    def unload(self) -> None:
        super().close()
