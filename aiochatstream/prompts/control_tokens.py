"""Token ids of a prompt in which only the template writes control tokens.

A template and the texts of a conversation become one string, and tokenizers read ``<|im_end|>`` as a control token
wherever it is. So the texts are marked before they are rendered: a random number breaks each control token, and each
character (but letters and digits) that one could begin or end with. In the rendered string, a control token without a
mark is the template's; all else, without the marks, is encoded by a vocabulary that has no control tokens.
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
"""Marks all strings in a value of JSON's types, keys too."""

Parts = list[str]
"""A rendered prompt: plain text at even places, a control token of the template at odd ones."""

MARK_DIGITS = 16
"""Digits pass through trim, upper and tojson as they are."""


def encode_prompt(
    tokenizer: Any,
    render: Callable[[Mark], str],
    begun: str = "",
    *,
    add_special_tokens: bool,
    special_tokens_in_text: bool = False,
) -> list[int]:
    """Return the token ids of a rendered prompt, and of the answer ``begun`` after it.

    These are apart, as the model wrote them, so that what it has read of the prompt counts as known; together with
    tokenizers that would put a space between.

    :param render: renders the prompt, with the mark applied to every text that is not the template's own.
    :param add_special_tokens: whether the tokenizer adds its special tokens (a BOS, mostly).
    :param special_tokens_in_text: True leaves the texts as they are, so that they can hold control tokens.

    Raises what ``render`` raises, and :class:`~aiochatstream.errors.InvalidValue` for a control token that this
    tokenizer cannot encode as text.
    """
    if special_tokens_in_text or tokenizer is None:
        return _encode_as_it_is(tokenizer, render(_unmarked), begun, add_special_tokens=add_special_tokens)
    control = control_tokens(tokenizer)
    marks = _Marks(control)
    try:
        text = render(marks)
    except InvalidValue:
        render(_unmarked)  # raises it in words without marks
        raise
    if not (marks.needed or control.may_be_in(begun)):
        return _encode_as_it_is(tokenizer, text, begun, add_special_tokens=add_special_tokens)
    parts = marks.split(text)
    if marks.read:  # the template looks for these, as for </think>: it finds them as they are, and without marks
        others = _Marks(control, marks.read)
        read = others.split(render(others))
        if read[1::2] == parts[1::2]:
            parts = read
    before, after = _affixes(tokenizer) if add_special_tokens else ([], [])

    def ids_of(parts: Parts) -> list[int]:
        return [*before, *control.encode(parts), *after]

    plain = ids_of(parts)
    if not begun:
        return plain
    return _joined(tokenizer, plain + control.encode([begun]), ids_of([*parts[:-1], parts[-1] + begun]))


class ControlTokens:
    """The control tokens of one tokenizer, and its vocabulary without them.

    Control tokens are its special tokens, and other added tokens with punctuation: ``<think>``, ``<tool_call>``.
    """

    def __init__(self, tokenizer: Any) -> None:
        added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
        self.ids = {str(token): id_ for id_, token in added.items() if _is_control(token)}
        is_fast = getattr(tokenizer, "is_fast", False)
        if not is_fast:
            more = [token for token in getattr(tokenizer, "all_special_tokens", ()) if token and token not in self.ids]
            self.ids |= {token: tokenizer.convert_tokens_to_ids(token) for token in more}
        self.pattern = _pattern(self.ids) if self.ids else "(?!)"
        # a letter is no edge (of ChatGLM's sop): names of fields have it, and templates look these up
        self.firsts, self.lasts = ({token[end] for token in self.ids if not token[end].isalnum()} for end in (0, -1))
        edges = "".join(map(re.escape, self.firsts | self.lasts))
        self.text = re.compile(f"({self.pattern})|" + (f"[{edges}]" if edges else "(?!)"))
        self._normalizer = tokenizer.backend_tokenizer.normalizer if is_fast else None
        encoder = _RustEncoder if is_fast else _PythonEncoder
        self._encode: Callable[[Parts], list[int]] = encoder(tokenizer, self.ids, added)
        self._whole = re.compile(f"({self.pattern})")
        self._never = set(self.ids.values()) - {getattr(tokenizer, "unk_token_id", None)}

    def may_be_in(self, text: str) -> bool:
        """Return whether a part of a control token may be in ``text``, also after the tokenizer has normalised it."""
        if self.text.search(text):
            return True
        return self._normalizer is not None and bool(self.text.search(self._normalizer.normalize_str(text)))

    def encode(self, parts: Parts) -> list[int]:
        """Return the token ids of ``parts``, with control tokens at odd places only."""
        ids = self._encode(parts)
        wanted = self._control_ids(self.ids[token] for token in parts[1::2])
        if self._control_ids(ids) == wanted:
            return ids
        # this tokenizer's model itself knows them as words; their single characters are none
        broken = [
            part if at % 2 else self._whole.sub(lambda found: BREAK.join(found[0]), part)
            for at, part in enumerate(parts)
        ]
        ids = self._encode(broken)
        if self._control_ids(ids) != wanted:
            raise InvalidValue("The text has a control token that this model's tokenizer cannot encode as text.")
        return ids

    def _control_ids(self, ids: Iterable[int]) -> list[int]:
        return [id_ for id_ in ids if id_ in self._never]


_known: weakref.WeakKeyDictionary[Any, ControlTokens] = weakref.WeakKeyDictionary()


def control_tokens(tokenizer: Any) -> ControlTokens:
    """Return the control tokens of ``tokenizer``, as they were when it was first asked about."""
    found = _known.get(tokenizer)
    if found is None:
        found = _known[tokenizer] = ControlTokens(tokenizer)
    return found


class _Marks:
    """Marks texts, and finds the marks in what a template made of them.

    :param unmarked: control tokens that stay as they are.
    """

    def __init__(self, control: ControlTokens, unmarked: Collection[str] = ()) -> None:
        self._control, self._unmarked = control, unmarked
        self._mark = f"{secrets.randbelow(10**MARK_DIGITS):0{MARK_DIGITS}d}"
        self._tokens: set[str] = set()
        self.needed = False
        """True if a text had a part of a control token."""
        self.read: set[str] = set()
        """Control tokens of the texts that the template has taken out; known after :meth:`split`."""

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            self.needed = self.needed or self._control.may_be_in(value)
            return self._control.text.sub(self._marked, value)
        if isinstance(value, dict):
            return {self(key): self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self(item) for item in value]
        return value

    def split(self, text: str) -> Parts:
        """Return the parts of the rendered ``text``, without marks."""
        mark, pattern = self._mark, self._control.pattern
        parts, left, at = [""], set(), 0
        for found in re.finditer(f"{mark}({pattern}){mark}|{mark}|({pattern})", text):
            parts[-1] += text[at : found.start()]
            at = found.end()
            if found[2]:
                parts += [found[2], ""]
            elif found[1]:
                parts[-1] += found[1]
                left.add(found[1])
        parts[-1] += text[at:]
        self.read = self._tokens - left
        return parts

    def _marked(self, found: re.Match[str]) -> str:
        text = found[0]
        if found[1] is None:
            before = self._mark if text in self._control.lasts else ""
            return before + text + (self._mark if text in self._control.firsts else "")
        if text in self._unmarked:
            return text
        self._tokens.add(text)
        return f"{self._mark}{text}{self._mark}"


BREAK = f"\N{INFORMATION SEPARATOR ONE}{secrets.token_hex(8)}\N{INFORMATION SEPARATOR ONE}"
"""Parts a word for the tokenizer, and has no id of its own."""


class _RustEncoder:
    """For tokenizers with a Rust backend: the same model, with other names for control tokens that no text can have."""

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
        text = "".join(self._names[part] if at % 2 else part for at, part in enumerate(parts))
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return [id_ for new in ids for id_ in self._ids.get(new, [new])]


class _PythonEncoder:
    """For tokenizers written in Python: the text between control tokens, piece by piece."""

    def __init__(self, tokenizer: Any, control: dict[str, int], added: dict[int, Any]) -> None:
        self._tokenizer, self._control = weakref.proxy(tokenizer), control  # it is the key to this object
        self._tokens = {str(token): token for token in added.values()}
        self._others = {str(token): id_ for id_, token in added.items() if str(token) not in control}
        self._other = re.compile(f"({_pattern(self._others)})" if self._others else "((?!))")

    def __call__(self, parts: Parts) -> list[int]:
        ids: list[int] = []
        for at, part in enumerate(parts):
            if at % 2:
                ids.append(self._control[part])
                continue
            if at and getattr(self._tokens.get(parts[at - 1]), "rstrip", False):
                part = part.lstrip()
            if at + 1 < len(parts) and getattr(self._tokens.get(parts[at + 1]), "lstrip", False):
                part = part.rstrip()
            for piece in part.split(BREAK):
                ids += self._plain(piece)
        return ids

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = []
        for at, piece in enumerate(self._other.split(text)):
            if at % 2:
                ids.append(self._others[piece])
            elif piece:
                ids += self._tokenizer.encode(piece, add_special_tokens=False, split_special_tokens=True)
        return ids


def _unmarked(value: Any) -> Any:
    return value


def _is_control(token: Any) -> bool:
    text = str(token)
    return not text.isspace() and (token.special or any(one in string.punctuation for one in text)) and bool(text)


def _pattern(words: Collection[str]) -> str:
    """Return a regular expression for any of ``words``, the longest first; of many, it reads each character once."""
    rests: defaultdict[str, set[str]] = defaultdict(set)
    for word in words:
        if word:
            rests[word[0]].add(word[1:])
    if not rests:
        return ""
    branches = (re.escape(first) + _pattern(rest) for first, rest in rests.items())
    return f"(?:{'|'.join(branches)}){'?' if '' in words else ''}"


def _encode_as_it_is(tokenizer: Any, text: str, begun: str, *, add_special_tokens: bool) -> list[int]:
    def ids_of(some: str, *, special: bool) -> list[int]:
        ids: list[int] = tokenizer(some, add_special_tokens=special)["input_ids"]
        return ids

    plain = ids_of(text, special=add_special_tokens)
    if not begun:
        return plain
    return _joined(tokenizer, plain + ids_of(begun, special=False), ids_of(text + begun, special=add_special_tokens))


def _joined(tokenizer: Any, apart: list[int], together: list[int]) -> list[int]:
    return apart if tokenizer.decode(apart) == tokenizer.decode(together) else together


def _affixes(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the token ids that the tokenizer adds before and after a text."""
    bare, full = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    for at in range(len(full) - len(bare) + 1):
        if full[at : at + len(bare)] == bare:
            return full[:at], full[at + len(bare) :]
    return [], []
