"""Models trained on ChatML."""

from __future__ import annotations

from aiochatstream.prompts.base import AbstractChatPrompt


class ChatPromptMosaicmlMptChat(AbstractChatPrompt):
    """MPT-chat by MosaicML. It was tuned on ChatML, not on ``<human>:`` and ``<bot>:``."""

    def create_prompt(self) -> str:
        """Return each message between ``<|im_start|>`` and ``<|im_end|>``, up to the answer to generate."""
        text = f"<|im_start|>system\n{self.replace_input(self.system)}<|im_end|>\n" if self.system else ""
        for role, message in self.get_contents():
            text += f"<|im_start|>{role}\n" + ("" if message is None else f"{message}<|im_end|>\n")
        return text

    def get_stop_strs(self) -> list[str]:
        """Return the end of a message, and the text of the EOS."""
        return ["<|im_end|>", "<|endoftext|>"]
