"""Llama 2 chat."""

from __future__ import annotations

from aiochatstream.prompts.base import AbstractChatPrompt


class ChatPromptMetaLlamaLlama2Chat(AbstractChatPrompt):
    """Llama-2-chat by Meta.

    Every turn has its own BOS and EOS (``<s>``, ``</s>``), which are written out here, so the tokenizer is to add
    none. As with the model's chat template, nothing follows the last ``[/INST]``: the space is part of the answer's
    first token.
    """

    add_special_tokens = False

    def create_prompt(self) -> str:
        """The turns, the system text within the first."""
        head = f"<<SYS>>\n{self.replace_input(self.system)}\n<</SYS>>\n\n" if self.system else ""
        text = ""
        contents = self.get_contents()
        for (_, user), (_, answer) in zip(contents[::2], contents[1::2], strict=True):
            text += f"<s>[INST] {f'{head}{user}'.strip()} [/INST]"
            text += "" if answer is None else f" {answer.strip()} </s>"
            head = ""
        return text
