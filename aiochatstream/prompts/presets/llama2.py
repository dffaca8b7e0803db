"""Llama 2 chat."""

from __future__ import annotations

from aiochatstream.prompts.base import AbstractChatPrompt


class ChatPromptMetaLlamaLlama2Chat(AbstractChatPrompt):
    """Llama-2-chat by Meta.

    The text contains the BOS and EOS of every turn (``<s>``, ``</s>``), so that the tokenizer must not add any. As in
    the model's chat template, no space follows the last ``[/INST]``: the space is part of the answer's first token.
    """

    add_special_tokens = False

    def create_prompt(self) -> str:
        """Return the turns, with the system prompt in the first."""
        head = f"<<SYS>>\n{self.replace_input(self.system)}\n<</SYS>>\n\n" if self.system else ""
        text = ""
        contents = self.get_contents()
        for (_, user), (_, answer) in zip(contents[::2], contents[1::2], strict=True):
            text += f"<s>[INST] {f'{head}{user}'.strip()} [/INST]"
            text += "" if answer is None else f" {answer.strip()} </s>"
            head = ""
        return text
