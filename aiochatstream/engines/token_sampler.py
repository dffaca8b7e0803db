"""The contract of a sampler of one's own, in place of the built-in one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiochatstream.params import GenerationParams

if TYPE_CHECKING:
    import torch


class TokenSampler(ABC):
    """Chooses the next token of each answer under way, for ``ChatStream(token_sampler=...)``.

    One object serves all answers, and is called in the engine's threads: in one thread where the model's rows are
    batched, in that of each answer (in several at once) where they are not.
    """

    @abstractmethod
    def sample(
        self, logits: torch.Tensor, token_ids: Sequence[Sequence[int]], params: Sequence[GenerationParams]
    ) -> Sequence[int] | torch.Tensor:
        """Return the next token id of each row, as integers of a sequence or a tensor [rows].

        :param logits: [rows, vocabulary], float32, on the model's device: the last position's, as the model gave them,
            but -inf where the answer's constraint excludes a token. A copy that may be changed.
        :param token_ids: the ids of each row so far, prompt and answer; not to be changed.
        :param params: what each row's answer is to be made with, ``seed`` among it; none of it has been applied.

        Where it raises, or returns no token ids, it is called again for each row alone, and the answers fail whose own
        call does: so raise before anything is remembered.
        """
