"""The answer so far, of which several upstreams may have generated parts."""

from __future__ import annotations

from collections.abc import Sequence

from aiochatstream.engines.base import Delta, FinishReason
from aiochatstream.engines.stop_strings import StopStrings
from aiochatstream.engines.upstream.client import FINISH_REASONS
from aiochatstream.engines.upstream.stream_chunks import StreamChunk, StreamUsage


class PartialAnswer:
    """Converts the chunks of one answer to deltas, and remembers what the next upstream needs to continue it.

    text, thinking: the answer so far, without whitespace that is held back.
    token_ids: its tokens, if :attr:`knows_ids`.
    knows_ids: True if the ids of all its tokens are known.
    tokens_with_text: number of its tokens, without the last ones that have no text yet.
    stopped: True after a stop string.

    :param stop: strings that end the answer. The upstream may know them, too; but only this object sees those that one
        upstream begins and another one completes.
    :param holds_space: hold back whitespace at the end of the text until more text follows. What a chat template may
        remove from the end of a message is then generated again when the answer is resumed.
    """

    def __init__(self, stop: tuple[str, ...], *, holds_space: bool) -> None:
        self.token_ids: list[int] = []
        self.knows_ids = True
        self.tokens_with_text = 0
        self._tokens = 0
        self.stopped = False
        self._stops, self._holds_space = StopStrings(stop), holds_space
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._prompt_tokens: int | None = None
        self.begin_attempt()

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def thinking(self) -> str:
        return "".join(self._thoughts)

    @property
    def has_output(self) -> bool:
        """True if there is text or a thought."""
        return bool(self._texts or self._thoughts)

    @property
    def in_thought(self) -> bool:
        """True if there is a thought that no text has followed."""
        return bool(self._thoughts) and not self._texts

    def begin_attempt(self) -> None:
        """Prepare for the chunks of an upstream, which continues the answer.

        It generates again the last tokens that have no text: the beginning of a character, or the end of the answer.
        """
        del self.token_ids[self.tokens_with_text :]
        self._position = self._tokens_before = self.tokens_with_text
        self._attempt_has_ids = False
        self._space, self._space_ids = "", list[int]()
        self._space_tokens = 0
        self._usage: StreamUsage | None = None
        self._finish_reason = ""

    def push(self, chunk: StreamChunk) -> list[Delta]:
        """Add a chunk; return its deltas."""
        if chunk.prompt_tokens and self._prompt_tokens is None:
            self._prompt_tokens = chunk.prompt_tokens - self._tokens_before
        self._usage = chunk.usage or self._usage
        self._finish_reason = chunk.finish_reason or self._finish_reason
        text, thinking, ids = chunk.text, chunk.thinking, chunk.token_ids
        self._attempt_has_ids = self._attempt_has_ids or bool(ids)
        count = len(ids) if self._attempt_has_ids else int(bool(text or thinking))
        if not count and not text and not thinking:
            return []
        deltas = []
        if thinking:
            self._thoughts.append(thinking)
            deltas.append(self._delta("", ids, count, thinking))
            ids, count = (), 0
        if text or count:
            deltas += self._push_text(text, ids, count)
        return deltas

    def finish(self) -> Delta:
        """Return the last delta: text that is held back, the finish reason, and the upstream's own counts."""
        text = "" if self.stopped else self._stops.push(self._space)[0] + self._stops.flush()
        tokens, prompt_tokens, cached_tokens = self._space_tokens, self._prompt_tokens, 0
        if self._usage is not None and not self.stopped:
            tokens = self._tokens_before + self._usage.completion_tokens - self._tokens
            cached_tokens = self._usage.cached_tokens
            if prompt_tokens is None:
                prompt_tokens = self._usage.prompt_tokens - self._tokens_before
        prompt_tokens = max(0, prompt_tokens or 0)
        return Delta(
            text,
            finish_reason=self._reason(),
            tokens=tokens,
            prompt_tokens=prompt_tokens,
            cached_tokens=min(cached_tokens, prompt_tokens),
        )

    def cut_off(self) -> Delta:
        """Return the last delta of an answer that has its maximum length, although no upstream has ended it."""
        self._finish_reason = "length"
        return self.finish()

    def _reason(self) -> FinishReason:
        reason = "stop" if self.stopped else FINISH_REASONS[self._finish_reason]
        return "thinking_length" if reason == "length" and self.in_thought else reason

    def _push_text(self, text: str, ids: Sequence[int], count: int) -> list[Delta]:
        if self._holds_space:
            text = self._space + text
            shown = text.rstrip()
            self._space = text[len(shown) :]
            if not shown:
                self._space_ids += ids
                self._space_tokens += count
                return []
            text, ids, count = shown, (*self._space_ids, *ids), self._space_tokens + count
            self._space_ids, self._space_tokens = [], 0
        if text:
            self._texts.append(text)
        return [self._delta(text, ids, count)]

    def _delta(self, text: str, ids: Sequence[int], count: int, thinking: str = "") -> Delta:
        """Return a delta, without stop strings in its text, and count its tokens."""
        self._position += count
        self.token_ids += ids
        self.knows_ids = self.knows_ids and len(ids) == count
        count = max(0, self._position - self._tokens)  # without those that were generated again
        ids = ids[len(ids) - count :] if ids else ids
        self._tokens += count
        if text or thinking:
            self.tokens_with_text = self._position
        if text:
            text, self.stopped = self._stops.push(text)
        return Delta(
            text,
            tuple(ids),
            thinking=thinking,
            thinking_tokens=count if thinking else 0,
            tokens=0 if ids else count,
        )
