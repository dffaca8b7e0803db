"""The prompt classes with chatstream's methods."""

from __future__ import annotations

from typing import Any

from aiochatstream.compat.prompts import AbstractChatPrompt, ChatContent, RoleType
from aiochatstream.prompts import AbstractChatPrompt as BaseChatPrompt
from aiochatstream.prompts import ChatPrompt as TemplatePrompt
from aiochatstream.prompts import presets


class ChatPrompt(TemplatePrompt, AbstractChatPrompt):
    """Prompt in the format of the tokenizer's chat template."""

    @classmethod
    def for_model(cls, tokenizer_or_name: Any) -> type[BaseChatPrompt]:
        """Return :meth:`aiochatstream.ChatPrompt.for_model`, a preset with chatstream's methods."""
        prompt_class = super().for_model(tokenizer_or_name)
        return PRESETS.get(prompt_class.__name__, prompt_class)


class _WithInputs(AbstractChatPrompt):
    """Instructions whose inputs, their child messages, follow under a heading."""

    input_heading = "### 入力: "

    def get_contents(self, opts: object = None) -> list[ChatContent]:
        """Return the messages with their child messages in the text."""
        return [self._with_input(content) for content in super().get_contents(opts)]

    def _with_input(self, content: ChatContent) -> ChatContent:
        if content.message is None or not content.child_messages:
            return content
        instruction, inputs = content.message.strip(), "\n\n".join(content.child_messages)
        text = f"{instruction}\n\n{self.input_heading}\n{inputs}"
        return ChatContent(content.role, text, RoleType.REQUESTER, content.message_id, content.child_messages)


class ChatPromptCyberAgentOpenCalm(presets.ChatPromptCyberAgentOpenCalm, AbstractChatPrompt):
    """OpenCALM by CyberAgent."""


class ChatPromptDatabricksDolly(presets.ChatPromptDatabricksDolly, AbstractChatPrompt):
    """dolly-v2 by Databricks."""


class ChatPromptLineCorpJpLargeLmInstSft(presets.ChatPromptLineCorpJpLargeLmInstSft, AbstractChatPrompt):
    """Instruction-tuned japanese-large-lm by LINE."""


class ChatPromptMatsuoLabJpGptNeoxInstSft(presets.ChatPromptMatsuoLabJpGptNeoxInstSft, _WithInputs):
    """weblab-10b-instruction-sft by the Matsuo lab: single turn."""

    input_heading = "### 入力:"


class ChatPromptMetaLlamaLlama2Chat(presets.ChatPromptMetaLlamaLlama2Chat, AbstractChatPrompt):
    """Llama-2-chat by Meta."""


class ChatPromptMosaicmlMptChat(presets.ChatPromptMosaicmlMptChat, AbstractChatPrompt):
    """MPT-chat by MosaicML."""


class ChatPromptOpenlmrOpenLlama(presets.ChatPromptOpenlmrOpenLlama, AbstractChatPrompt):
    """OpenLLaMA by OpenLM Research."""


class ChatPromptRinnaJpGptNeoxInstSft(presets.ChatPromptRinnaJpGptNeoxInstSft, AbstractChatPrompt):
    """Instruction-tuned japanese-gpt-neox-3.6b by rinna."""


class ChatPromptStabilityAiJpGptNeoxInstSft(presets.ChatPromptStabilityAiJpGptNeoxInstSft, _WithInputs):
    """japanese-stablelm-instruct-alpha-7b by Stability AI."""


class ChatPromptStockmarkGptNeoxJp(presets.ChatPromptStockmarkGptNeoxJp, AbstractChatPrompt):
    """gpt-neox-japanese-1.4b by Stockmark."""


class ChatPromptTogetherRedPajamaINCITEChat(presets.ChatPromptTogetherRedPajamaINCITEChat, AbstractChatPrompt):
    """RedPajama-INCITE-Chat by Together."""


ChatPromptRinnaJapaneseGPTNeoxInst = ChatPromptRinnaJpGptNeoxInstSft
"""Name of the preset in the documentation of chatstream."""

PRESETS: dict[str, type[AbstractChatPrompt]] = {
    prompt_class.__name__: prompt_class
    for prompt_class in (
        ChatPromptCyberAgentOpenCalm,
        ChatPromptDatabricksDolly,
        ChatPromptLineCorpJpLargeLmInstSft,
        ChatPromptMatsuoLabJpGptNeoxInstSft,
        ChatPromptMetaLlamaLlama2Chat,
        ChatPromptMosaicmlMptChat,
        ChatPromptOpenlmrOpenLlama,
        ChatPromptRinnaJpGptNeoxInstSft,
        ChatPromptStabilityAiJpGptNeoxInstSft,
        ChatPromptStockmarkGptNeoxJp,
        ChatPromptTogetherRedPajamaINCITEChat,
    )
}
"""Presets by the name of their class."""
