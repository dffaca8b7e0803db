"""Token ids of a choice, if the client requests them with ``return_token_ids``, as in vLLM."""

from __future__ import annotations

from collections.abc import Sequence


class ChoiceTokens:
    """Token ids of the prompt and the answer of a choice.

    prompt: token ids of the prompt; None if the client does not request token ids, or the engine has no tokenizer.
    answer: token ids of the answer so far.
    """

    def __init__(self) -> None:
        self.prompt: list[int] | None = None
        self.answer: list[int] = []
        self._sends_prompt = False
        self._sent = 0
        """Number of the answer's tokens in earlier chunks."""

    def begin(self, prompt: Sequence[int]) -> None:
        """Set the prompt."""
        self.prompt, self._sends_prompt = list(prompt), True

    def add(self, token_ids: Sequence[int]) -> None:
        """Add the tokens of the next text, thoughts and calls."""
        self.answer += token_ids

    def prompt_for_chunk(self) -> list[int] | None:
        """Return the prompt for the first chunk; None for further chunks."""
        sends, self._sends_prompt = self._sends_prompt, False
        return self.prompt if sends else None

    def new_for_chunk(self) -> list[int]:
        """Return the answer's tokens that are in no earlier chunk."""
        new = self.answer[self._sent :]
        self._sent = len(self.answer)
        return new
