"""Response templates of model families whose checkpoints have none, in transformers' format.

A template is chosen by the type of the model, the tokens of its vocabulary and the marks in its chat template: one type
of model has checkpoints with different formats, and one format belongs to several types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CHAT_STARTS = [
    "<|im_start|>assistant\n",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|assistant|>\n",
    "<start_of_turn>model\n",
    "<\uff5cAssistant\uff5c>",
    "[/INST]",
    "[/TOOL_RESULTS]",
]
"""Ends of generation prompts before which no other text of the format begins a response."""

CONTENT: dict[str, Any] = {}
"""Content without a mark of its own."""

THINK_TAGS: dict[str, Any] = {"open": "<think>", "close": "</think>", "repeats": True, "join": "\n\n"}

NAMED_CALL = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
"""Message field of a call whose name is in its open mark."""

OBJECT_CALL = {"type": "function", "function": "{content}"}
"""Message field of a call that is a JSON object with a name and arguments."""

HERMES_CALLS: dict[str, Any] = {
    "open": "<tool_call>",
    "close": "</tool_call>",
    "repeats": True,
    "content": "json",
    "transform": OBJECT_CALL,
}

XML_CALLS: dict[str, Any] = {
    "open_pattern": r"<tool_call>\s*<function=(?P<name>[^>\n]+)>",
    "close_pattern": r"</function>\s*</tool_call>",
    "repeats": True,
    "content": "xml-inline",
    "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>"},
    "transform": NAMED_CALL,
}

LLAMA_CALLS: dict[str, Any] = {
    # Llama 3 writes calls after <|python_tag|>, or as a bare object at the beginning of the response or of a line.
    "open_pattern": r'<\|python_tag\|>|(?:\A|(?<=\n))[ \t]*(?:\[\s*)?(?=\{\s*"(?:name|type)"\s*:)',
    "repeats": True,
    "content": "json",
    "transform": OBJECT_CALL,
}

HARMONY_CLOSE = ["<|end|>", "<|return|>", "<|call|>"]


def _template(start_anchor: list[str], **fields: dict[str, Any]) -> dict[str, Any]:
    return {"defaults": {"role": "assistant"}, "start_anchor": start_anchor, "fields": fields}


TEMPLATES: dict[str, dict[str, Any]] = {
    "harmony": _template(
        ["<|start|>assistant"],
        thinking={
            "open_pattern": r"(?:<\|start\|>assistant)?<\|channel\|>analysis\s*<\|message\|>",
            "close": HARMONY_CLOSE,
            "repeats": True,
            "join": "\n\n",
        },
        tool_calls={
            # The recipient is before or after the channel.
            "open_pattern": r"(?:<\|start\|>assistant)?"
            r"(?:\s*to=(?:functions\.)?(?P<name>[\w.\-]+)\s*<\|channel\|>\w+"
            r"|<\|channel\|>\w+\s+to=(?:functions\.)?(?P<name>[\w.\-]+))"
            r"\s*(?:<\|constrain\|>)?\w*\s*<\|message\|>",
            "close": HARMONY_CLOSE,
            "repeats": True,
            "content": "json",
            "transform": NAMED_CALL,
        },
        content={
            "open_pattern": r"(?:<\|start\|>assistant)?<\|channel\|>(?:final|commentary)"
            r"\s*(?:<\|constrain\|>\w*\s*)?<\|message\|>",
            "close": HARMONY_CLOSE,
            "repeats": True,
            "join": "\n\n",
        },
    ),
    "gemma4": _template(
        ["<|turn>model\n", "<tool_response|>"],
        thinking={"open": "<|channel>thought\n", "close": "<channel|>", "repeats": True, "join": "\n\n"},
        tool_calls={
            "open_pattern": r"<\|tool_call>call:(?P<name>[\w.\-]+)(?=\s*\{)",
            "close": "<tool_call|>",
            "repeats": True,
            "content": "json",
            "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
            "transform": NAMED_CALL,
        },
        content={"close": ["<turn|>", "<|tool_response>"]},
    ),
    "functiongemma": _template(
        ["<start_of_turn>model\n", "<end_function_response>"],
        tool_calls={
            "open_pattern": r"<start_function_call>call:(?P<name>[\w.\-]+)(?=\s*\{)",
            "close": "<end_function_call>",
            "repeats": True,
            "content": "json",
            "content_args": {"unquoted_keys": True, "string_delims": [["<escape>", "<escape>"]]},
            "transform": NAMED_CALL,
        },
        content={"close": ["<end_of_turn>", "<start_function_response>"]},
    ),
    "deepseek": _template(
        ["<｜Assistant｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁end｜>"],
        thinking=THINK_TAGS,
        tool_calls={
            # R1 and V3 write the name on the next line, before a block of code; V3.1 writes it first.
            "open_pattern": r"(?:<｜tool▁calls▁begin｜>\s*)?<｜tool▁call▁begin｜>"
            r"(?:function<｜tool▁sep｜>(?P<name>[^\n<]+)\n```json\n|(?P<name>[^\n<]+)<｜tool▁sep｜>)",
            "close_pattern": r"(?:```\s*)?<｜tool▁call▁end｜>(?:\s*<｜tool▁calls▁end｜>)?",
            "repeats": True,
            "content": "json",
            "transform": NAMED_CALL,
        },
        content=CONTENT,
    ),
    "mistral": _template(
        ["[/INST]", "[/TOOL_RESULTS]"],
        thinking={"open": "[THINK]", "close": "[/THINK]", "repeats": True, "join": "\n\n"},
        tool_calls={
            "open_pattern": r"\[TOOL_CALLS\]\s*(?P<name>[\w.\-]+)(?:\[CALL_ID\]\w+)?\[ARGS\]",
            "repeats": True,
            "content": "json",
            "transform": NAMED_CALL,
        },
        content=CONTENT,
    ),
    "mistral_list": _template(
        ["[/INST]", "[/TOOL_RESULTS]"],
        tool_calls={
            "open": "[TOOL_CALLS]",
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}},
            "transform_each": True,
        },
        content=CONTENT,
    ),
    "qwen3_5": _template(CHAT_STARTS, thinking=THINK_TAGS, tool_calls=XML_CALLS, content=CONTENT),
    "qwen3": _template(CHAT_STARTS, thinking=THINK_TAGS, tool_calls=HERMES_CALLS, content=CONTENT),
    "hermes": _template(CHAT_STARTS, tool_calls=HERMES_CALLS, content=CONTENT),
    "llama3_thinking": _template(CHAT_STARTS, thinking=THINK_TAGS, tool_calls=LLAMA_CALLS, content=CONTENT),
    "llama3": _template(CHAT_STARTS, tool_calls=LLAMA_CALLS, content=CONTENT),
    "thinking": _template(CHAT_STARTS, thinking=THINK_TAGS, content=CONTENT),
}


@dataclass(frozen=True)
class Rule:
    """The conditions under which a template fits a model.

    template: name of the template.
    types: beginnings of model types; any of them fits. Empty for all types.
    tokens: tokens that the vocabulary contains.
    marks: texts that the chat template contains.
    """

    template: str
    types: tuple[str, ...] = ("",)
    tokens: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()

    def fits(self, model_type: str, vocabulary: Mapping[str, int], chat_template: str) -> bool:
        """Return True if the template fits."""
        return (
            model_type.startswith(self.types)
            and all(token in vocabulary for token in self.tokens)
            and all(mark in chat_template for mark in self.marks)
        )


RULES = (
    Rule("harmony", tokens=("<|channel|>", "<|message|>")),
    Rule("gemma4", tokens=("<|channel>", "<|tool_call>")),
    Rule("functiongemma", tokens=("<start_function_call>",)),
    Rule("deepseek", tokens=("<｜tool▁call▁begin｜>",)),
    Rule("mistral", tokens=("[TOOL_CALLS]", "[ARGS]")),
    Rule("mistral_list", tokens=("[TOOL_CALLS]",)),
    Rule("qwen3_5", types=("qwen3_5",)),
    Rule("qwen3_5", marks=("<tool_call>", "<function=")),
    Rule("qwen3", types=("qwen2", "qwen3")),
    Rule("qwen3", marks=("<tool_call>", "</think>")),
    Rule("hermes", marks=("<tool_call>",)),
    Rule("llama3_thinking", tokens=("<|python_tag|>",), marks=("</think>",)),
    Rule("llama3", tokens=("<|python_tag|>",)),
    Rule("thinking", marks=("</think>",)),
)
"""Rules in order of precedence. Tokens decide first: distilled models keep the type of their base."""


def find_response_template(model_type: str, tokenizer: Any) -> dict[str, Any] | None:
    """Return the response template for a model; None if no template of the table fits.

    :param model_type: the configuration's model_type.
    :param tokenizer: HuggingFace tokenizer of the model.
    """
    vocabulary = tokenizer.get_vocab()
    chat_template = _chat_template(tokenizer)
    return next((TEMPLATES[rule.template] for rule in RULES if rule.fits(model_type, vocabulary, chat_template)), None)


def _chat_template(tokenizer: Any) -> str:
    """Return the text of all chat templates of a tokenizer."""
    template = getattr(tokenizer, "chat_template", None) or ""
    return "\n".join(template.values()) if isinstance(template, dict) else str(template)
