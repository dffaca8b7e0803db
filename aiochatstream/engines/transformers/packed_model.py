"""A model that computes packed steps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from aiochatstream.engines.transformers import attention, varlen_attention
from aiochatstream.engines.transformers.batch_check import BatchCheck, CannotBatch
from aiochatstream.engines.transformers.kv_cache import Kernel, supports
from aiochatstream.engines.transformers.packed_forward import PackedForward

COMPILE_REQUIREMENTS = "It requires torch 2.13 and, on a CPU, Linux with g++ and the Python headers."

logger = logging.getLogger(__name__)


class PackedModel:
    """Replaces the attention of a model, and its modules with states, by those of packed steps.

    Raise CannotBatch if the model's results are not the same then; the model is unchanged in this case.

    :param embeddings: number of tokens that the model embeds.
    :param context_len: maximum number of tokens of a row.
    """

    def __init__(self, model: Any, embeddings: int, context_len: int) -> None:
        self._model = model
        self._replacements = ExitStack()
        self.forward = PackedForward(model)
        with ExitStack() as restore:
            try:
                self._check = BatchCheck(model, embeddings, context_len)
                restore.callback(model.set_attn_implementation, model.config._attn_implementation)
                model.set_attn_implementation(attention.NAME)
                for mixer in self._check.mixers:
                    restore.callback(mixer.remove)
                    mixer.install()
                self._check.verify(self.forward)
            except CannotBatch:
                raise
            except Exception as error:
                raise CannotBatch(f"its forward pass does not accept packed rows: {error!r}") from error
            self._replacements = restore.pop_all()
        if model.device.type == "cpu":
            self._check.use_updates(self.forward)

    @property
    def layers(self) -> Sequence[tuple[torch.Tensor, ...]]:
        """Keys and values of each layer, as examples."""
        return self._check.layers

    @property
    def states(self) -> dict[Any, torch.Tensor]:
        """States of a row, as examples."""
        return self._check.states

    def restore(self) -> None:
        """Restore the model's own attention and modules."""
        self._replacements.close()

    def choose_kernel(self) -> Kernel | None:
        """Return the kernel of the device that reads block tables; None if there is none or it changes answers."""
        kernel: Kernel | None = None
        if self._model.device.type == "cpu":
            kernel = "native"
        elif self._model.device.type == "cuda" and varlen_attention.is_available():
            kernel = "varlen"
        if kernel is None or not supports(kernel, self.layers):
            return None
        try:
            self._check.verify(self.forward, kernel)
        except Exception as error:  # noqa: BLE001 - no compiler, or a device that the kernel does not support
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            logger.info("Attention by torch's operations: the %s kernel is not available (%s).", kernel, reason)
            return None
        return kernel

    def compile(self, kernel: Kernel | None) -> PackedForward:
        """Return a compiled forward pass. Raise RuntimeError if the model cannot be compiled."""
        name = type(self._model).__name__
        logger.info("Compiling %s", name)
        try:
            forward = PackedForward(self._model, compiled=True)
            self._check.verify(forward, kernel)
        except Exception as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            requirements = "" if isinstance(error, CannotBatch) else f" {COMPILE_REQUIREMENTS}"
            raise RuntimeError(f"compile: {name} cannot be compiled ({reason}).{requirements}") from error
        return forward
