"""The next token, drawn from the logits."""

from __future__ import annotations

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from aiochatstream.params import GenerationParams

GREEDY_BELOW = 1e-4
"""A temperature under which dividing the logits by it could overflow."""


class Sampler:
    """Draws the tokens of one answer: repetition penalty, temperature, top_k, top_p, then a seeded draw.

    The steps are transformers' own logits processors, in the order in which ``generate`` applies them. At a temperature
    below 1e-4 the likeliest token is taken and nothing is drawn.
    """

    def __init__(self, params: GenerationParams, device: torch.device) -> None:
        self._greedy = params.temperature < GREEDY_BELOW
        self._generator = torch.Generator(device).manual_seed(params.seed)
        self._processors = LogitsProcessorList()
        if params.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
        if self._greedy:
            return
        if params.temperature != 1:
            self._processors.append(TemperatureLogitsWarper(params.temperature))
        if params.top_k:
            self._processors.append(TopKLogitsWarper(params.top_k))
        if params.top_p < 1:
            self._processors.append(TopPLogitsWarper(params.top_p))

    @torch.inference_mode()
    def __call__(self, token_ids: torch.Tensor, logits: torch.Tensor) -> int:
        """The next token id.

        :param token_ids: [1, length], prompt and answer so far.
        :param logits: [1, vocabulary], of the last position.
        """
        scores = self._processors(token_ids, logits.float())
        if self._greedy:
            return int(scores.argmax(dim=-1))
        return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator))
