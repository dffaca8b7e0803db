"""Phases of an answer with thoughts: a budget for the thoughts, and a grammar that begins with the content."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from aiochatstream.engines.base import Prompt
from aiochatstream.engines.transformers.answer_format import AnswerFormat
from aiochatstream.engines.transformers.grammars import MASK_BITS, Matcher
from aiochatstream.engines.transformers.response_reader import Region
from aiochatstream.params import GenerationParams


class AnswerPhase:
    """Constraint of the tokens of an answer with thoughts.

    A thought that reaches ``max_thinking_tokens`` is closed: the tokens that close it are forced. The grammar applies
    from the beginning of the content; before it, the answer cannot end. If the format marks where content begins
    (Harmony), only the marks of a thought and of the content may precede it.

    :param matcher: grammar of the content; None allows any text.
    :param eos_ids: tokens that end an answer.
    :param vocab_size: number of tokens in masks.
    """

    def __init__(
        self,
        answer_format: AnswerFormat,
        prompt: Prompt,
        params: GenerationParams,
        matcher: Matcher | None,
        eos_ids: Collection[int],
        vocab_size: int,
    ) -> None:
        self._reader = answer_format.reader(prompt)
        self._budget, self._matcher = params.max_thinking_tokens, matcher
        self._open_ids = answer_format.ids_of(answer_format.template.open_thinking)
        self._close_ids = answer_format.ids_of(answer_format.template.close_thinking)
        self._eos_ids, self._mask_size = list(eos_ids), -(-vocab_size // MASK_BITS)
        self._forced: deque[int] = deque()
        self._marks: list[list[int]] = []
        """Remaining tokens of the marks of which one must follow; empty if there is a choice."""
        control = answer_format.control_tokens
        closed = control.keys() & self._close_ids & set(prompt.token_ids[-len(self._close_ids) - 1 :])
        if self._reader.region == "other":  # in Harmony, the same tokens close messages
            closed = set()
        self._may_think = params.thinking != "off" and self._budget != 0 and not closed and not prompt.continued
        """True if a thought may begin the answer."""
        has_mark = bool(self._open_ids) and (
            self._open_ids[0] in control or (matcher is not None and not answer_format.is_blank(self._open_ids[0]))
        )
        self._may_open = self._may_think and has_mark and self._reader.region == "content"
        """True at the first token, if it may begin a thought instead of the content."""
        self._matching = False
        """True from the beginning of the content on, if there is a grammar."""
        self._enter("content")

    @property
    def _content_ids(self) -> list[int]:
        """Tokens that begin the content outside of a thought: the end of those that close a thought."""
        if not self._open_ids or self._open_ids[0] not in self._close_ids:
            return []
        return self._close_ids[self._close_ids.index(self._open_ids[0]) :]

    @property
    def forced_token(self) -> int | None:
        """The token that must follow; None if there is a choice."""
        if self._forced:
            return self._forced[0]
        tokens = {mark[0] for mark in self._marks}
        return tokens.pop() if len(tokens) == 1 else None

    @property
    def mask(self) -> NDArray[np.int32] | None:
        """Mask of the tokens that may follow, as :attr:`Matcher.mask`; None allows all.

        Raise the errors of :attr:`Matcher.mask`.
        """
        if self._forced or self._marks:
            tokens = [self._forced[0]] if self._forced else [mark[0] for mark in self._marks]
            return _changed(np.zeros(self._mask_size, np.int32), tokens, allowed=True)
        if self._matcher is None:
            return None
        if not self._matching:
            return _changed(np.full(self._mask_size, -1, np.int32), self._eos_ids, allowed=False)
        mask = self._matcher.mask
        return _changed(mask.copy(), self._open_ids[:1], allowed=True) if self._may_open else mask

    @property
    def ready(self) -> bool:
        """True if :attr:`mask` does not wait."""
        needs_matcher = self._matching and not self._forced and not self._marks
        return not needs_matcher or self._matcher is None or self._matcher.ready

    def on_ready(self, function: Callable[[], None]) -> None:
        """Call ``function`` as soon as a mask of the grammar is ready, as :meth:`Matcher.on_ready`."""
        if self._matcher is not None:
            self._matcher.on_ready(function)

    def allows(self, token: int) -> bool:
        """Return True if ``token`` may follow."""
        mask = self.mask
        return mask is None or bool(mask[token // MASK_BITS] >> token % MASK_BITS & 1)

    def advance(self, token: int) -> None:
        """Append ``token``, which must be allowed."""
        opens, self._may_open = self._opens(token), False
        if opens:
            self._matching = False
            self._forced.extend(self._open_ids[1:])
        elif self._forced:
            self._forced.popleft()
        else:
            self._marks = [mark[1:] for mark in self._marks if mark[0] == token and len(mark) > 1]
        if self._matching and self._matcher is not None:
            self._matcher.advance(token)  # no thought follows
            return
        region = self._reader.region
        try:
            self._reader.step(token)
        except Exception:  # noqa: BLE001 - the reader of the answer's own thread raises it as well
            return
        self._enter(region, token)

    def _opens(self, token: int) -> bool:
        """Return True if ``token`` begins a thought. A token of the grammar does not."""
        if not self._may_open or token != self._open_ids[0]:
            return False
        return self._matcher is None or not self._matcher.allows(token)

    def _enter(self, previous: Region, token: int = -1) -> None:
        """Force the tokens that must follow, or apply the grammar, in the reader's region.

        :param previous: region before ``token``.
        """
        if self._forced or self._marks:
            return
        region = self._reader.region
        if region == "thinking":
            self._may_think = False
            if self._budget is not None and self._reader.thinking_tokens >= self._budget:
                self._forced.extend(self._close_ids)
        elif previous == "thinking" and self._matcher is not None and token in self._close_ids:
            self._forced.extend(self._close_ids[self._close_ids.index(token) + 1 :])  # for example to the final channel
        elif region == "other" and self._matcher is not None:
            self._marks = [ids for ids in (self._open_ids if self._may_think else [], self._content_ids) if ids]
        self._matching = self._matcher is not None and region == "content" and not self._forced


def _changed(mask: NDArray[np.int32], tokens: Collection[int], *, allowed: bool) -> NDArray[np.int32]:
    """Return ``mask``, changed for ``tokens``."""
    octets = mask.view(np.uint8)
    for token in tokens:
        if allowed:
            octets[token // 8] |= 1 << token % 8
        else:
            octets[token // 8] &= 0xFF ^ 1 << token % 8
    return mask
