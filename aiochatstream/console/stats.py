"""Figures of the answers so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiochatstream.runtime.events import Ended, Usage
from aiochatstream.texts import Messages


def rate(ended: Ended) -> tuple[int, float]:
    """Tokens after the first, and the seconds that they took; nothing of an answer that has no two."""
    ttft, total = ended.timing.ttft_s, ended.timing.total_s
    tokens = ended.usage.completion_tokens - 1
    return (0, 0.0) if ttft is None or tokens < 1 or total <= ttft else (tokens, total - ttft)


@dataclass
class Stats:
    """What was counted. tokens/s is of the tokens after the first, whose time is told apart."""

    answers: list[Ended] = field(default_factory=list)

    def add(self, ended: Ended) -> None:
        """One more answer."""
        self.answers.append(ended)

    def last_answer(self, messages: Messages) -> str:
        """The last one in a line."""
        return " · ".join(self._parts(self.answers[-1:], messages))

    def table(self, messages: Messages) -> str:
        """The last one and all of them, with the prompts' tokens."""
        lines = []
        for title, answers in ((messages.last_answer, self.answers[-1:]), (messages.all_answers, self.answers)):
            usage = Usage(*map(sum, zip(*(answer.usage for answer in answers), strict=True)))
            parts = self._parts(answers, messages)
            parts.append(messages.prompt_tokens.format(count=usage.prompt_tokens, cached=usage.cached_tokens))
            lines.append(title.format(count=len(answers), parts=" · ".join(parts)))
        return "\n".join(lines)

    @staticmethod
    def _parts(answers: list[Ended], messages: Messages) -> list[str]:
        parts = [messages.tokens.format(count=sum(answer.usage.completion_tokens for answer in answers))]
        tokens, seconds = map(sum, zip(*map(rate, answers), strict=True))
        if tokens:
            parts.append(messages.rate.format(rate=tokens / seconds))
        firsts = [answer.timing.ttft_s for answer in answers if answer.timing.ttft_s is not None]
        if firsts:
            parts.append(messages.first.format(seconds=sum(firsts) / len(firsts)))
        return parts
