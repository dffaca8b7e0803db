"""Statistics of the answers in a console session."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiochatstream.runtime.events import Ended, Usage
from aiochatstream.texts import Texts


def rate(ended: Ended) -> tuple[int, float]:
    """Return the number of tokens after the first, and the seconds to generate them; zeros if there are none."""
    ttft, total = ended.timing.ttft_s, ended.timing.total_s
    tokens = ended.usage.completion_tokens - 1
    return (0, 0.0) if ttft is None or tokens < 1 or total <= ttft else (tokens, total - ttft)


@dataclass
class Stats:
    """Statistics of answers. The rate excludes the first token, whose time is shown separately."""

    answers: list[Ended] = field(default_factory=list)

    def add(self, ended: Ended) -> None:
        self.answers.append(ended)

    def last_answer(self, texts: Texts) -> str:
        """Return a line about the last answer."""
        return " · ".join(self._parts(self.answers[-1:], texts))

    def table(self, texts: Texts) -> str:
        """Return lines about the last answer and about all answers, including the tokens of the prompts."""
        lines = []
        for title, answers in ((texts.last_answer, self.answers[-1:]), (texts.all_answers, self.answers)):
            usage = Usage(*map(sum, zip(*(answer.usage for answer in answers), strict=True)))
            parts = self._parts(answers, texts)
            parts.append(texts.prompt_tokens.format(count=usage.prompt_tokens, cached=usage.cached_tokens))
            lines.append(title.format(count=len(answers), parts=" · ".join(parts)))
        return "\n".join(lines)

    @staticmethod
    def _parts(answers: list[Ended], texts: Texts) -> list[str]:
        parts = [texts.tokens.format(count=sum(answer.usage.completion_tokens for answer in answers))]
        thoughts = sum(answer.usage.thinking_tokens for answer in answers)
        if thoughts:
            parts.append(texts.thinking_tokens.format(count=thoughts))
        tokens, seconds = map(sum, zip(*map(rate, answers), strict=True))
        if tokens:
            parts.append(texts.rate.format(rate=tokens / seconds))
        firsts = [answer.timing.ttft_s for answer in answers if answer.timing.ttft_s is not None]
        if firsts:
            parts.append(texts.first.format(seconds=sum(firsts) / len(firsts)))
        return parts
