"""The format of a model's answers: its response template and the control tokens of its vocabulary."""

from __future__ import annotations

import string
from typing import Any

from aiochatstream.engines.base import Prompt
from aiochatstream.engines.transformers.answer_reader import TemplateReader
from aiochatstream.engines.transformers.detokenizing import detokenizer
from aiochatstream.engines.transformers.response_reader import ResponseReader, load_response_template
from aiochatstream.engines.transformers.response_templates import find_response_template

PREFIX_TOKENS = 1024
"""Number of tokens at the end of a prompt that contain the beginning of a new answer."""


class AnswerFormat:
    """The format of a model's answers.

    template: compiled response template.
    control_tokens: texts of the special tokens and of other added tokens with punctuation, by id.

    :param spec: response template in transformers' format.

    Raises ValueError that names ``response_template`` if the template is invalid.
    """

    def __init__(self, tokenizer: Any, spec: dict[str, Any]) -> None:
        self._tokenizer = tokenizer
        added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
        special = {id_: str(tokenizer.convert_ids_to_tokens(id_)) for id_ in tokenizer.all_special_ids}
        special |= {id_: str(token) for id_, token in added.items() if token.special}
        others = {id_: str(token) for id_, token in added.items() if set(str(token)) & set(string.punctuation)}
        self.control_tokens: dict[int, str] = others | special
        try:
            self.template = load_response_template(spec, set(self.control_tokens.values()), set(special.values()))
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # transformers checks only the outline
            raise ValueError(f"response_template: {error}.") from error

    def reader(self, prompt: Prompt) -> TemplateReader:
        """Return a reader of a new answer to ``prompt``."""
        ids = prompt.token_ids if prompt.continued else prompt.token_ids[-PREFIX_TOKENS:]
        prefix = str(self._tokenizer.decode(ids, skip_special_tokens=False))
        text_of = detokenizer(self._tokenizer, ids if prompt.continued else ())
        return TemplateReader(ResponseReader(self.template, prefix, prompt.tools), text_of, self.control_tokens)

    def ids_of(self, mark: str | None) -> list[int]:
        """Return the token ids of a mark of the template; none for None."""
        return [] if mark is None else list(self._tokenizer.encode(mark, add_special_tokens=False))

    def is_blank(self, token_id: int) -> bool:
        """Return True if the text of a token is only whitespace."""
        return not self._tokenizer.decode([token_id]).strip()


def find_template(tokenizer: Any, model_type: str, template: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the response template of a model's answers; None if there is none.

    :param template: template of the application, which takes precedence over the checkpoint's and the table's.
    """
    spec: dict[str, Any] | None = getattr(tokenizer, "response_template", None) if template is None else template
    return find_response_template(model_type, tokenizer) if spec is None else spec
