"""Encoding of prompts in which only the template writes control tokens.

A template and the texts of a conversation become one string, and a tokenizer reads ``<|im_end|>`` as a control token
anywhere in it. The texts are therefore marked before they are rendered: a random number surrounds each control token,
and each character (except letters and digits) that a control token can begin or end with. In the rendered string, a
control token without a mark is the template's. The marks are then removed, and everything else is encoded with a
vocabulary without control tokens.
"""

from __future__ import annotations

import re
import secrets
import string
import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from typing import Any

from aiochatstream.errors import InvalidValue

Mark = Callable[[Any], Any]
"""Function that marks all strings in a JSON value, including keys."""

Parts = list[str]
"""A rendered prompt: plain text at even indices, control tokens of the template at odd ones."""

MARK_DIGITS = 16
"""Length of a mark. Filters such as trim, upper and tojson do not change digits."""


def encode_prompt(
    tokenizer: Any,
    render: Callable[[Mark], str],
    open_answer: str = "",
    *,
    add_special_tokens: bool,
    special_tokens_in_text: bool = False,
) -> list[int]:
    """Return the token ids of a rendered prompt, followed by the token ids of ``open_answer``.

    The two are encoded separately, as the model generated them, so that a cached prefix matches; together if the
    tokenizer would otherwise insert a space.

    :param render: function that renders the prompt, and applies the mark to every text that is not the template's own.
    :param add_special_tokens: add the tokenizer's special tokens (usually a BOS).
    :param special_tokens_in_text: allow control tokens in the texts.

    Raise the errors of ``render``, and :class:`~aiochatstream.errors.InvalidValue` for a control token that this
    tokenizer cannot encode as text.
    """
    if special_tokens_in_text or tokenizer is None:
        return _encode_unchecked(tokenizer, render(_identity), open_answer, add_special_tokens=add_special_tokens)
    control = control_tokens(tokenizer)
    marks = _Marks(control)
    try:
        text = render(marks)
    except InvalidValue:
        render(_identity)  # raises the error without marks in its text
        raise
    if not (marks.needed or control.may_be_in(open_answer)):
        return _encode_unchecked(tokenizer, text, open_answer, add_special_tokens=add_special_tokens)
    parts = marks.split(text)
    if marks.removed:  # the template parses these (for example </think>): render them without marks
        partial_marks = _Marks(control, marks.removed)
        partial_parts = partial_marks.split(render(partial_marks))
        if partial_parts[1::2] == parts[1::2]:
            parts = partial_parts
    before, after = _affixes(tokenizer) if add_special_tokens else ([], [])

    def ids_of(parts: Parts) -> list[int]:
        return [*before, *control.encode(parts), *after]

    plain = ids_of(parts)
    if not open_answer:
        return plain
    return _join(tokenizer, plain + control.encode([open_answer]), ids_of([*parts[:-1], parts[-1] + open_answer]))


class ControlTokens:
    """The control tokens of a tokenizer, and its vocabulary without them.

    Control tokens are the special tokens, and other added tokens with punctuation: ``<think>``, ``<tool_call>``.
    """

    def __init__(self, tokenizer: Any) -> None:
        added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
        self.ids = {str(token): id_ for id_, token in added.items() if _is_control(token)}
        is_fast = getattr(tokenizer, "is_fast", False)
        if not is_fast:
            special = [token for token in getattr(tokenizer, "all_special_tokens", ()) if token]
            self.ids |= {token: tokenizer.convert_tokens_to_ids(token) for token in special if token not in self.ids}
        self.pattern = _pattern(self.ids) if self.ids else "(?!)"
        # letters are not marked (ChatGLM's sop begins with one): templates look up fields by their names
        self.firsts, self.lasts = ({token[end] for token in self.ids if not token[end].isalnum()} for end in (0, -1))
        edges = "".join(map(re.escape, self.firsts | self.lasts))
        self.text = re.compile(f"({self.pattern})|" + (f"[{edges}]" if edges else "(?!)"))
        self._normalizer = tokenizer.backend_tokenizer.normalizer if is_fast else None
        encoder = _RustEncoder if is_fast else _PythonEncoder
        self._encode: Callable[[Parts], list[int]] = encoder(tokenizer, self.ids, added)
        self._token = re.compile(f"({self.pattern})")
        self._reserved_ids = set(self.ids.values()) - {getattr(tokenizer, "unk_token_id", None)}

    def may_be_in(self, text: str) -> bool:
        """Return True if ``text`` may contain a part of a control token, before or after normalisation."""
        if self.text.search(text):
            return True
        return self._normalizer is not None and bool(self.text.search(self._normalizer.normalize_str(text)))

    def encode(self, parts: Parts) -> list[int]:
        """Return the token ids of ``parts``, with control tokens at odd indices only."""
        ids = self._encode(parts)
        expected = self._control_ids(self.ids[token] for token in parts[1::2])
        if self._control_ids(ids) == expected:
            return ids
        # the tokenizer's vocabulary contains control tokens as words: encode their characters separately
        split = [
            part if index % 2 else self._token.sub(lambda match: BREAK.join(match[0]), part)
            for index, part in enumerate(parts)
        ]
        ids = self._encode(split)
        if self._control_ids(ids) != expected:
            raise InvalidValue("The text contains a control token that this model's tokenizer cannot encode as text.")
        return ids

    def _control_ids(self, ids: Iterable[int]) -> list[int]:
        return [id_ for id_ in ids if id_ in self._reserved_ids]


_cache: weakref.WeakKeyDictionary[Any, ControlTokens] = weakref.WeakKeyDictionary()


def control_tokens(tokenizer: Any) -> ControlTokens:
    """Return the control tokens of ``tokenizer``, as of the first call."""
    control = _cache.get(tokenizer)
    if control is None:
        control = _cache[tokenizer] = ControlTokens(tokenizer)
    return control


class _Marks:
    """Marking of texts, and removal of the marks from the rendered prompt.

    :param unmarked: control tokens not to mark.
    """

    def __init__(self, control: ControlTokens, unmarked: Collection[str] = ()) -> None:
        self._control, self._unmarked = control, unmarked
        self._mark = f"{secrets.randbelow(10**MARK_DIGITS):0{MARK_DIGITS}d}"
        self._tokens: set[str] = set()
        self.needed = False
        """True if a text contained a part of a control token."""
        self.removed: set[str] = set()
        """Control tokens of the texts that the template did not render; set by :meth:`split`."""

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            self.needed = self.needed or self._control.may_be_in(value)
            return self._control.text.sub(self._add_mark, value)
        if isinstance(value, dict):
            return {self(key): self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self(item) for item in value]
        return value

    def split(self, text: str) -> Parts:
        """Return the parts of the rendered ``text``, without marks."""
        mark, pattern = self._mark, self._control.pattern
        parts, rendered, start = [""], set(), 0
        for match in re.finditer(f"{mark}({pattern}){mark}|{mark}|({pattern})", text):
            parts[-1] += text[start : match.start()]
            start = match.end()
            if match[2]:
                parts += [match[2], ""]
            elif match[1]:
                parts[-1] += match[1]
                rendered.add(match[1])
        parts[-1] += text[start:]
        self.removed = self._tokens - rendered
        return parts

    def _add_mark(self, match: re.Match[str]) -> str:
        text = match[0]
        if match[1] is None:
            before = self._mark if text in self._control.lasts else ""
            return before + text + (self._mark if text in self._control.firsts else "")
        if text in self._unmarked:
            return text
        self._tokens.add(text)
        return f"{self._mark}{text}{self._mark}"


BREAK = f"\N{INFORMATION SEPARATOR ONE}{secrets.token_hex(8)}\N{INFORMATION SEPARATOR ONE}"
"""Separator that splits a word for the tokenizer, and has no token id."""


class _RustEncoder:
    """Encoder for tokenizers with a Rust backend: the same model with random names for the control tokens."""

    def __init__(self, tokenizer: Any, control: dict[str, int], added: dict[int, Any]) -> None:
        from tokenizers import AddedToken, Tokenizer  # here, so that importing the package is light

        backend = tokenizer.backend_tokenizer
        self._backend = Tokenizer(backend.model)  # shared, not copied
        for stage in ("normalizer", "pre_tokenizer"):
            if getattr(backend, stage) is not None:
                setattr(self._backend, stage, getattr(backend, stage))
        nonce = secrets.token_hex(8)
        self._names = {token: f"{nonce}x{id_}x" for token, id_ in control.items()}
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        renamed = {
            id_: AddedToken(self._names.get(str(token), str(token)), **{flag: getattr(token, flag) for flag in flags})
            for id_, token in added.items()
        }
        word_break = AddedToken(BREAK, normalized=False, special=True)
        self._backend.add_tokens([*renamed.values(), word_break])
        self._ids = {self._backend.token_to_id(token.content): [id_] for id_, token in renamed.items()}
        self._ids[self._backend.token_to_id(BREAK)] = []

    def __call__(self, parts: Parts) -> list[int]:
        text = "".join(self._names[part] if index % 2 else part for index, part in enumerate(parts))
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return [id_ for new in ids for id_ in self._ids.get(new, [new])]


class _PythonEncoder:
    """Encoder for tokenizers written in Python: each text between control tokens is encoded separately."""

    def __init__(self, tokenizer: Any, control: dict[str, int], added: dict[int, Any]) -> None:
        self._tokenizer = weakref.proxy(tokenizer)  # a reference would keep its entry in _cache
        self._control = control
        self._tokens = {str(token): token for token in added.values()}
        self._others = {str(token): id_ for id_, token in added.items() if str(token) not in control}
        self._other_token = re.compile(f"({_pattern(self._others)})" if self._others else "((?!))")

    def __call__(self, parts: Parts) -> list[int]:
        ids: list[int] = []
        for index, part in enumerate(parts):
            if index % 2:
                ids.append(self._control[part])
                continue
            if index and getattr(self._tokens.get(parts[index - 1]), "rstrip", False):
                part = part.lstrip()
            if index + 1 < len(parts) and getattr(self._tokens.get(parts[index + 1]), "lstrip", False):
                part = part.rstrip()
            for segment in part.split(BREAK):
                ids += self._encode_text(segment)
        return ids

    def _encode_text(self, text: str) -> list[int]:
        ids: list[int] = []
        for index, segment in enumerate(self._other_token.split(text)):
            if index % 2:
                ids.append(self._others[segment])
            elif segment:
                ids += self._tokenizer.encode(segment, add_special_tokens=False, split_special_tokens=True)
        return ids


def _identity(value: Any) -> Any:
    return value


def _is_control(token: Any) -> bool:
    text = str(token)
    return (
        not text.isspace()
        and (token.special or any(character in string.punctuation for character in text))
        and bool(text)
    )


def _pattern(words: Collection[str]) -> str:
    """Return a regular expression that matches the longest of ``words``. It is a trie: each character is read once."""
    suffixes: defaultdict[str, set[str]] = defaultdict(set)
    for word in words:
        if word:
            suffixes[word[0]].add(word[1:])
    if not suffixes:
        return ""
    branches = (re.escape(first) + _pattern(rest) for first, rest in suffixes.items())
    return f"(?:{'|'.join(branches)}){'?' if '' in words else ''}"


def _encode_unchecked(tokenizer: Any, text: str, open_answer: str, *, add_special_tokens: bool) -> list[int]:
    def ids_of(text: str, *, special: bool) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    plain = ids_of(text, special=add_special_tokens)
    if not open_answer:
        return plain
    separate = plain + ids_of(open_answer, special=False)
    return _join(tokenizer, separate, ids_of(text + open_answer, special=add_special_tokens))


def _join(tokenizer: Any, separate: list[int], together: list[int]) -> list[int]:
    """Return ``separate`` if its text equals the text of ``together``, else ``together``."""
    return separate if tokenizer.decode(separate) == tokenizer.decode(together) else together


def _affixes(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the token ids that the tokenizer adds before and after a text."""
    bare, full = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []
