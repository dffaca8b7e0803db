"""Prompts of well-known models whose tokenizers have no chat template. Each module is a format."""

from __future__ import annotations

from aiochatstream.prompts.base import AbstractChatPrompt
from aiochatstream.prompts.presets.base_model import ChatPromptCyberAgentOpenCalm, ChatPromptStockmarkGptNeoxJp
from aiochatstream.prompts.presets.chatml import ChatPromptMosaicmlMptChat
from aiochatstream.prompts.presets.instruction import (
    ChatPromptDatabricksDolly,
    ChatPromptMatsuoLabJpGptNeoxInstSft,
    ChatPromptStabilityAiJpGptNeoxInstSft,
)
from aiochatstream.prompts.presets.llama2 import ChatPromptMetaLlamaLlama2Chat
from aiochatstream.prompts.presets.transcript import (
    ChatPromptLineCorpJpLargeLmInstSft,
    ChatPromptOpenlmrOpenLlama,
    ChatPromptRinnaJpGptNeoxInstSft,
    ChatPromptTogetherRedPajamaINCITEChat,
    PlainPrompt,
)

__all__ = [
    "FORMATS",
    "PRESETS",
    "ChatPromptCyberAgentOpenCalm",
    "ChatPromptDatabricksDolly",
    "ChatPromptLineCorpJpLargeLmInstSft",
    "ChatPromptMatsuoLabJpGptNeoxInstSft",
    "ChatPromptMetaLlamaLlama2Chat",
    "ChatPromptMosaicmlMptChat",
    "ChatPromptOpenlmrOpenLlama",
    "ChatPromptRinnaJpGptNeoxInstSft",
    "ChatPromptStabilityAiJpGptNeoxInstSft",
    "ChatPromptStockmarkGptNeoxJp",
    "ChatPromptTogetherRedPajamaINCITEChat",
    "PlainPrompt",
    "find_format",
    "find_preset",
]

FORMATS: dict[str, type[AbstractChatPrompt]] = {
    "plain": PlainPrompt,
    "chatml": ChatPromptMosaicmlMptChat,
    "llama2": ChatPromptMetaLlamaLlama2Chat,
    "redpajama": ChatPromptTogetherRedPajamaINCITEChat,
    "dolly": ChatPromptDatabricksDolly,
    "open-llama": ChatPromptOpenlmrOpenLlama,
    "rinna": ChatPromptRinnaJpGptNeoxInstSft,
    "line": ChatPromptLineCorpJpLargeLmInstSft,
    "japanese-stablelm": ChatPromptStabilityAiJpGptNeoxInstSft,
    "weblab": ChatPromptMatsuoLabJpGptNeoxInstSft,
    "open-calm": ChatPromptCyberAgentOpenCalm,
}
"""Presets by the short name of their format, for the command."""

PRESETS: dict[str, type[AbstractChatPrompt]] = {
    "togethercomputer/RedPajama-INCITE-Chat-3B-v1": ChatPromptTogetherRedPajamaINCITEChat,
    "togethercomputer/RedPajama-INCITE-7B-Chat": ChatPromptTogetherRedPajamaINCITEChat,
    "mosaicml/mpt-7b-chat": ChatPromptMosaicmlMptChat,
    "rinna/japanese-gpt-neox-3.6b-instruction-sft": ChatPromptRinnaJpGptNeoxInstSft,
    "rinna/japanese-gpt-neox-3.6b-instruction-sft-v2": ChatPromptRinnaJpGptNeoxInstSft,
    "rinna/japanese-gpt-neox-3.6b-instruction-ppo": ChatPromptRinnaJpGptNeoxInstSft,
    "line-corporation/japanese-large-lm-1.7b-instruction-sft": ChatPromptLineCorpJpLargeLmInstSft,
    "line-corporation/japanese-large-lm-3.6b-instruction-sft": ChatPromptLineCorpJpLargeLmInstSft,
    "stabilityai/japanese-stablelm-instruct-alpha-7b": ChatPromptStabilityAiJpGptNeoxInstSft,
    "matsuo-lab/weblab-10b-instruction-sft": ChatPromptMatsuoLabJpGptNeoxInstSft,
    "databricks/dolly-v2-3b": ChatPromptDatabricksDolly,
    "databricks/dolly-v2-7b": ChatPromptDatabricksDolly,
    "databricks/dolly-v2-12b": ChatPromptDatabricksDolly,
    "openlm-research/open_llama_3b": ChatPromptOpenlmrOpenLlama,
    "openlm-research/open_llama_7b": ChatPromptOpenlmrOpenLlama,
    "openlm-research/open_llama_13b": ChatPromptOpenlmrOpenLlama,
    "openlm-research/open_llama_3b_v2": ChatPromptOpenlmrOpenLlama,
    "openlm-research/open_llama_7b_v2": ChatPromptOpenlmrOpenLlama,
    "meta-llama/Llama-2-7b-chat": ChatPromptMetaLlamaLlama2Chat,
    "meta-llama/Llama-2-13b-chat": ChatPromptMetaLlamaLlama2Chat,
    "meta-llama/Llama-2-70b-chat": ChatPromptMetaLlamaLlama2Chat,
    "meta-llama/Llama-2-7b-chat-hf": ChatPromptMetaLlamaLlama2Chat,
    "meta-llama/Llama-2-13b-chat-hf": ChatPromptMetaLlamaLlama2Chat,
    "meta-llama/Llama-2-70b-chat-hf": ChatPromptMetaLlamaLlama2Chat,
    "cyberagent/open-calm-small": ChatPromptCyberAgentOpenCalm,
    "cyberagent/open-calm-medium": ChatPromptCyberAgentOpenCalm,
    "cyberagent/open-calm-large": ChatPromptCyberAgentOpenCalm,
    "cyberagent/open-calm-1b": ChatPromptCyberAgentOpenCalm,
    "cyberagent/open-calm-3b": ChatPromptCyberAgentOpenCalm,
    "cyberagent/open-calm-7b": ChatPromptCyberAgentOpenCalm,
    "stockmark/gpt-neox-japanese-1.4b": ChatPromptStockmarkGptNeoxJp,
}
"""Presets by the model's id on the Hugging Face hub."""


def find_format(name: str) -> type[AbstractChatPrompt] | None:
    """Return the preset of a format (:data:`FORMATS`) or of a model, or None. Ignores case."""
    return FORMATS.get(name.lower()) or find_preset(name)


def find_preset(name: str) -> type[AbstractChatPrompt] | None:
    """Return the preset of a model, or None. Ignores case.

    :param name: the model's id on the hub, or a folder whose path ends with the model's name. The name begins the last
        component of the path or follows one of ``-_.``, as in ``models--owner--name``. The longest match is used.
    """
    path = name.replace("\\", "/").rstrip("/").lower()
    matches = []
    for model_id in PRESETS:
        model = model_id.lower().rpartition("/")[2]
        before = path.removesuffix(model)
        if before != path and (not before or before[-1] in "/-_."):
            matches.append(model_id)
    return PRESETS[max(matches, key=len)] if matches else None
