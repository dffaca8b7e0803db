"""The interface of custom samplers, which replace the built-in one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiochatstream.params import GenerationParams

if TYPE_CHECKING:
    import torch


class TokenSampler(ABC):
    """Chooses the next token of each running answer, for ``TransformersEngine(token_sampler=...)``.

    One object serves all answers. It is called in a single thread if the model's rows are batched, else in the threads
    of the answers, concurrently.
    """

    @abstractmethod
    def sample(
        self, logits: torch.Tensor, token_ids: Sequence[Sequence[int]], params: Sequence[GenerationParams]
    ) -> Sequence[int] | torch.Tensor:
        """Return the next token id of each row, as a sequence of integers or a tensor [rows].

        :param logits: [rows, vocabulary], float32, on the model's device: the model's logits for the next token, -inf
            for tokens that the answer's constraint excludes. A copy that may be modified. (A token that closes a
            thought of ``max_thinking_tokens`` replaces the returned one.)
        :param token_ids: token ids of each row so far, prompt and answer; must not be modified.
        :param params: parameters of each row, including ``seed``; none of them has been applied.

        If it raises or returns invalid ids, it is called again for each row alone, and only the answers whose own call
        fails are ended. It should therefore raise before it changes any state.
        """
