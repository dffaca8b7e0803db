"""The prompt for every model whose tokenizer has a chat template."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

from aiochatstream.errors import InvalidValue
from aiochatstream.prompts.base import AbstractChatPrompt
from aiochatstream.prompts.presets import find_preset


class ChatPrompt(AbstractChatPrompt):
    """Follows the tokenizer's own chat template."""

    @classmethod
    def for_model(cls, tokenizer_or_name: Any) -> type[AbstractChatPrompt]:
        """The prompt class for a model: this one if its tokenizer has a chat template, else the preset for its name.

        :param tokenizer_or_name: the model's tokenizer, or its id on the hub or folder, which only a preset can fit.

        Raises ValueError where there is neither.
        """
        if getattr(tokenizer_or_name, "chat_template", None):
            return cls
        if isinstance(tokenizer_or_name, str):
            name, missing = tokenizer_or_name, "prompt preset"
        else:
            name, missing = getattr(tokenizer_or_name, "name_or_path", ""), "chat template and no prompt preset"
        preset = find_preset(name)
        if preset is None:
            raise ValueError(
                f"There is no {missing} for the model {name!r}: write a subclass of AbstractChatPrompt, whose "
                "create_prompt gives the text as the model expects it, and hand it to ChatStream as chat_prompt_clazz."
            )
        return preset

    def create_prompt(self) -> str:
        """The prompt as text, special tokens included."""
        return str(self._apply(tokenize=False))

    def encode(self) -> list[int]:
        """The template's own token ids. Tokenising its text again could add a second BOS."""
        ids: list[int] = self._apply(tokenize=True)["input_ids"]
        return ids

    def _apply(self, *, tokenize: bool) -> Any:
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                "This model's tokenizer has no chat template. Hand ChatStream a chat_prompt_clazz of your own: "
                "a subclass of AbstractChatPrompt that writes the prompt as the model expects it."
            )
        try:
            return self.tokenizer.apply_chat_template(
                self.get_messages(), add_generation_prompt=True, tokenize=tokenize, return_dict=tokenize
            )
        except TemplateError as error:  # of some models, a system text
            raise InvalidValue(f"The model's chat template refuses this conversation: {error}.") from error
