"""Tiny models of today's families: their architecture, control tokens and chat template, with answers by the tests.

The chat templates have the structure of the published ones. The weights are random: a sampler writes the answers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GptOssConfig,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
)

from aiochatstream import ChatStream, GenerationParams, Limits, TransformersEngine
from aiochatstream.engines.token_bytes import byte_level_alphabet
from aiochatstream.engines.token_sampler import TokenSampler
from tests.engines.tokenizers import SpaceMovingTokenizer

Call = tuple[str, dict[str, str]]
"""Name and arguments of a call."""

TokenizerOf = Callable[[Sequence[str], Sequence[str], str], Any]
"""Function that returns a tokenizer for special tokens, other added tokens, and the token that ends an answer."""


def byte_level(special: Sequence[str], added: Sequence[str], end: str) -> Any:
    """Return a tokenizer like those of Qwen and Llama 3, with a token for each byte."""
    vocab = {character: at for at, character in enumerate(byte_level_alphabet())}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _with_marks(backend, special, added, end)


def byte_fallback(special: Sequence[str], added: Sequence[str], end: str, *, prefix: bool = False) -> Any:
    """Return a tokenizer like those of Gemma, with a token for each byte of text without other tokens.

    :param prefix: insert a space before text, as in Llama 2 and Mistral 7B.
    """
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnop日本東"]
    vocab = {token: at for at, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))  # noqa: S106
    spaces: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", "▁")])
    strip: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return _with_marks(backend, special, added, end)


def space_moving(special: Sequence[str], added: Sequence[str], end: str) -> Any:
    """Return a tokenizer in Python like that of LLM-jp-4, whose spaces depend on both neighbours."""
    kind = type("LlmJpTokenizer", (SpaceMovingTokenizer,), {"MARKS": (*special, *added)})
    return kind(model_input_names=["input_ids"])


def _with_marks(backend: Tokenizer, special: Sequence[str], added: Sequence[str], end: str) -> Any:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special], special_tokens=True)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return tokenizer


def _json_calls(before: str, after: str, between: str, key: str = "arguments") -> Callable[[Sequence[Call]], str]:
    """Return a function that writes calls as JSON objects."""

    def write(calls: Sequence[Call]) -> str:
        objects = (json.dumps({"name": name, key: arguments}, ensure_ascii=False) for name, arguments in calls)
        return between.join(f"{before}{text}{after}" for text in objects)

    return write


def _named_calls(before: str, separator: str, after: str) -> Callable[[Sequence[Call]], str]:
    """Return a function that writes calls as names and JSON."""

    def write(calls: Sequence[Call]) -> str:
        texts = ((name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls)
        return "".join(f"{before}{name}{separator}{text}{after}" for name, text in texts)

    return write


def _gemma_calls(begin: str, quote: str, end: str) -> Callable[[Sequence[Call]], str]:
    def write(calls: Sequence[Call]) -> str:
        texts = (
            (name, ",".join(f"{key}:{quote}{value}{quote}" for key, value in arguments.items()))
            for name, arguments in calls
        )
        return "".join(f"{begin}call:{name}{{{text}}}{end}" for name, text in texts)

    return write


def _xml_calls(calls: Sequence[Call]) -> str:
    texts = (
        (name, "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items()))
        for name, arguments in calls
    )
    return "\n".join(f"<tool_call>\n<function={name}>\n{text}</function>\n</tool_call>" for name, text in texts)


def _mistral_list(calls: Sequence[Call]) -> str:
    return f"[TOOL_CALLS] [{_json_calls('', '', ', ')(calls)}]"


def _deepseek_calls(calls: Sequence[Call]) -> str:
    text = _named_calls("<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n```json\n", "\n```<｜tool▁call▁end｜>")(calls)
    return f"<｜tool▁calls▁begin｜>{text}<｜tool▁calls▁end｜>"


GROUPED = {"intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16}
WINDOWS = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
QWEN3_5 = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
MINISTRAL_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 512,
    "llama_4_scaling_beta": 0.1,
}
GPT_OSS = {**GROUPED, **WINDOWS, **ROPE, "num_local_experts": 2, "num_experts_per_tok": 1}
GEMMA4 = {**GROUPED, **WINDOWS, "hidden_size_per_layer_input": 8, "global_head_dim": 16, "num_kv_shared_layers": 0}
DEEPSEEK = {
    **ROPE,
    "intermediate_size": 64,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
}

QWEN3_TEMPLATE = r"""
{%- set ns = namespace(asked=-1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}
{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{% endif %}
{{- '<tools>' }}{% for tool in tools %}{{- '\n' }}{{- tool | tojson }}{% endfor %}{{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\n' }}
{%- if message.reasoning_content is string and loop.index0 > ns.asked %}
{{- '<think>\n' + message.reasoning_content.strip('\n') + '\n</think>\n\n' }}
{%- endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""
"""Thoughts of the newest answer only, and a switch that writes an empty thought."""

QWEN3_5_TEMPLATE = (
    QWEN3_TEMPLATE.replace(
        '{"name": "\' + call.function.name + \'", "arguments": \'', "<function=' + call.function.name + '>\\n'"
    )
    .replace(
        "{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}",
        "{% for key, value in call.function.arguments | items %}"
        "{{- '<parameter=' + key + '>\\n' + (value if value is string else value | tojson) + '\\n</parameter>\\n' }}"
        "{% endfor %}{{- '</function>\\n</tool_call>' }}",
    )
    .replace(
        "{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}",
        "{{- '<think>\\n\\n</think>\\n\\n' }}{% else %}{{- '<think>\\n' }}{% endif %}",
    )
)
"""Like Qwen3, with calls in XML and a prompt that opens the thought."""

HERMES_TEMPLATE = QWEN3_TEMPLATE.partition("{%- if message.reasoning_content")[0] + (
    QWEN3_TEMPLATE.partition("</think>\\n\\n' }}\n{%- endif %}")[2].partition("{%- if enable_thinking")[0]
    + "{%- endif %}"
)
"""Qwen3 without thoughts."""

THINKING_TEMPLATE = r"""
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.reasoning_content %}{{- '<think>' + message.reasoning_content + '</think>' }}{% endif %}
{{- message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
"""All thoughts, and no tools."""

HARMONY_TEMPLATE = r"""
{%- set effort = reasoning_effort if reasoning_effort is defined else 'medium' %}
{{- '<|start|>system<|message|>Reasoning: ' + effort + '\n# Valid channels: analysis, commentary, final.<|end|>' }}
{%- set rest = messages %}
{%- if messages[0].role in ('system', 'developer') %}
{%- set instructions = messages[0].content %}{% set rest = messages[1:] %}
{%- endif %}
{%- if instructions or tools %}
{{- '<|start|>developer<|message|>' + (instructions or '') }}
{%- if tools %}{{- '\nnamespace functions {\n' }}{% for tool in tools %}
{{- 'type ' + tool.function.name + ' = (_: ' }}{{- tool.function.parameters | tojson }}{{- ') => any;\n' }}
{%- endfor %}{{- '}' }}{% endif %}
{{- '<|end|>' }}
{%- endif %}
{%- set last = namespace(call=none) %}
{%- for message in rest %}
{%- if message.role == 'assistant' %}
{%- if message.tool_calls %}
{%- if message.content and message.thinking %}
{{- raise_exception('An assistant message with calls must have content or thinking, not both.') }}
{%- endif %}
{%- if message.content or message.thinking %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + (message.content or message.thinking) + '<|end|>' }}
{%- endif %}
{%- set call = message.tool_calls[0].function %}{% set last.call = call.name %}
{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
{{- call.arguments | tojson }}{{- '<|call|>' }}
{%- else %}
{%- if message.thinking and loop.last %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
{%- endif %}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
{%- endif %}
{%- elif message.role == 'tool' %}
{%- if last.call is none %}{{- raise_exception('A result must follow a call.') }}{% endif %}
{{- '<|start|>functions.' + last.call + ' to=assistant<|channel|>commentary<|message|>' }}
{{- message.content | tojson }}{{- '<|end|>' }}
{%- else %}{{- '<|start|>user<|message|>' + message.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{% endif %}"""
"""Channels, a level of effort, and calls whose thought is their content."""

GEMMA4_TEMPLATE = r"""
{{- bos_token }}
{%- set rest = messages %}
{%- set system = messages[0].role in ('system', 'developer') %}
{%- if system or tools or enable_thinking %}
{{- '<|turn>system\n' }}{% if enable_thinking %}{{- '<|think|>\n' }}{% endif %}
{%- if system %}{{- messages[0].content | trim }}{% set rest = messages[1:] %}{% endif %}
{%- for tool in tools or [] %}
{{- '<|tool>declaration:' + tool.function.name + '{parameters:' }}{{- tool.function.parameters | tojson }}{{- '}<tool|>' }}
{%- endfor %}
{{- '<turn|>\n' }}
{%- endif %}
{%- set ns = namespace(open=false) %}
{%- for message in rest %}
{%- if message.role == 'tool' %}
{{- '<|tool_response>response:' + (message.name or 'unknown') + '{value:<|"|>' + message.content + '<|"|>}<tool_response|>' }}
{%- else %}
{%- if not ns.open %}{{- '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}{% endif %}
{%- if message.reasoning and message.tool_calls %}{{- '<|channel>thought\n' + message.reasoning + '<channel|>' }}{% endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '<|tool_call>call:' + call.function.name + '{' }}
{%- for key, value in call.function.arguments | dictsort %}
{{- key + ':<|"|>' + value + '<|"|>' }}{% if not loop.last %},{% endif %}
{%- endfor %}
{{- '}<tool_call|>' }}
{%- endfor %}
{%- set ns.open = message.tool_calls and message.role == 'assistant' %}
{%- if not ns.open %}{{- '<turn|>\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not ns.open %}{{- '<|turn>model\n' }}{% endif %}"""
"""Thoughts by a token in the system turn, and results of calls in the model's turn."""

FUNCTION_GEMMA_TEMPLATE = r"""
{{- bos_token }}
{%- set rest = messages %}
{%- if tools or messages[0].role in ('system', 'developer') %}
{{- '<start_of_turn>developer\n' }}
{%- if messages[0].role in ('system', 'developer') %}{{- messages[0].content | trim }}{% set rest = messages[1:] %}{% endif %}
{%- for tool in tools or [] %}
{{- '<start_function_declaration>declaration:' + tool.function.name + '{parameters:' }}
{{- tool.function.parameters | tojson }}{{- '}<end_function_declaration>' }}
{%- endfor %}
{{- '<end_of_turn>\n' }}
{%- endif %}
{%- set ns = namespace(previous='') %}
{%- for message in rest %}
{%- if message.role == 'tool' %}
{{- '<start_function_response>response:' + (message.name or 'unknown') + '{value:<escape>' + message.content + '<escape>}' }}
{{- '<end_function_response>' }}
{%- else %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' + (message.content or '') | trim }}
{%- for call in message.tool_calls or [] %}
{{- '<start_function_call>call:' + call.function.name + '{' }}
{%- for key, value in call.function.arguments | dictsort %}
{{- key + ':<escape>' + value + '<escape>' }}{% if not loop.last %},{% endif %}
{%- endfor %}
{{- '}<end_function_call>' }}
{%- endfor %}
{%- if not message.tool_calls %}{{- '<end_of_turn>\n' }}{% endif %}
{%- endif %}
{%- set ns.previous = message.role %}
{%- endfor %}
{%- if add_generation_prompt and ns.previous != 'tool' %}{{- '<start_of_turn>model\n' }}{% endif %}"""

MISTRAL_TEMPLATE = r"""
{{- bos_token }}
{%- set effort = reasoning_effort if reasoning_effort is defined and reasoning_effort is not none else 'none' %}
{%- if effort not in ('none', 'high') %}{{- raise_exception('reasoning_effort must be none or high.') }}{% endif %}
{%- set rest = messages %}
{%- if messages[0].role == 'system' %}
{{- '[SYSTEM_PROMPT]' + messages[0].content + '[/SYSTEM_PROMPT]' }}{% set rest = messages[1:] %}
{%- endif %}
{%- if tools %}{{- '[AVAILABLE_TOOLS]' }}{{- tools | tojson }}{{- '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[MODEL_SETTINGS]{"reasoning_effort": "' + effort + '"}[/MODEL_SETTINGS]' }}
{%- for message in rest %}
{%- if message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.role == 'assistant' %}
{%- if message.content is string %}{{- message.content }}
{%- else %}
{%- for block in message.content or [] %}
{{- '[THINK]' + block.thinking + '[/THINK]' if block.type == 'thinking' else block.text }}
{%- endfor %}
{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}{{- call.function.arguments | tojson }}
{%- endfor %}
{{- eos_token }}
{%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
{%- else %}{{- raise_exception('Roles are user, assistant and tool.') }}
{%- endif %}
{%- endfor %}"""
"""Two efforts, and thoughts as parts of the content."""

MISTRAL_LIST_TEMPLATE = r"""
{{- bos_token }}
{%- set rest = messages %}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}{% endif %}
{%- for message in rest %}
{%- if message.role == 'user' %}
{%- if loop.last and tools %}{{- '[AVAILABLE_TOOLS] ' }}{{- tools | tojson }}{{- '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST] ' + (system + '\n\n' if system and loop.last else '') + message.content + '[/INST]' }}
{%- elif message.role == 'assistant' and message.tool_calls %}
{{- '[TOOL_CALLS] [' }}
{%- for call in message.tool_calls %}
{%- if call.id is not defined or call.id | length != 9 %}
{{- raise_exception('Ids of calls must have nine letters and digits.') }}
{%- endif %}
{{- '{"name": "' + call.function.name + '", "arguments": ' }}{{- call.function.arguments | tojson }}
{{- ', "id": "' + call.id + '"}' }}{{- ', ' if not loop.last else ']' + eos_token }}
{%- endfor %}
{%- elif message.role == 'assistant' %}{{- ' ' + message.content + eos_token }}
{%- elif message.role == 'tool' %}
{%- if message.tool_call_id is not defined or message.tool_call_id | length != 9 %}
{{- raise_exception('Ids of calls must have nine letters and digits.') }}
{%- endif %}
{{- '[TOOL_RESULTS] {"content": ' + message.content + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- endif %}
{%- endfor %}"""

LLAMA3_TEMPLATE = r"""
{{- bos_token }}
{%- set rest = messages %}
{%- set system = '' %}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set rest = messages[1:] %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{%- if tools %}{{- 'Environment: ipython\n' }}{% for tool in tools %}{{- tool | tojson }}{{- '\n\n' }}{% endfor %}{% endif %}
{{- system + '<|eot_id|>' }}
{%- for message in rest %}
{%- if message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{- raise_exception('This model calls one tool at a time.') }}{% endif %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", "parameters": ' }}
{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}
{%- elif message.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}{{- message.content | tojson }}{{- '<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

LLAMA3_THINKING_TEMPLATE = LLAMA3_TEMPLATE.replace(
    "message.content | trim", "message.content.split('</think>')[-1] | trim"
)
"""A Llama 3 that was trained to think, whose template removes thoughts from the content."""

DEEPSEEK_TEMPLATE = r"""
{%- if not thinking is defined %}{% set thinking = false %}{% endif %}
{{- bos_token }}
{%- set ns = namespace(tool=false) %}
{%- for message in messages %}{% if message.role == 'system' %}{{- message.content }}{% endif %}{% endfor %}
{%- if tools %}{{- '\n## Tools\n' }}{% for tool in tools %}{{- tool.function | tojson }}{{- '\n' }}{% endfor %}{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<｜User｜>' + message.content }}{% set ns.tool = false %}
{%- elif message.role == 'assistant' %}
{%- if not ns.tool %}{{- '<｜Assistant｜></think>' }}{% endif %}
{%- if message.content %}{{- message.content.split('</think>')[-1] }}{% endif %}
{%- for call in message.tool_calls or [] %}
{{- '<｜tool▁calls▁begin｜>' if loop.first else '' }}
{{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call.function.name + '\n```json\n' + call.function.arguments }}
{{- '\n```<｜tool▁call▁end｜>' }}{{- '<｜tool▁calls▁end｜>' if loop.last else '' }}
{%- endfor %}
{{- '<｜end▁of▁sentence｜>' }}{% set ns.tool = false %}
{%- elif message.role == 'tool' %}
{{- '<｜tool▁output▁begin｜>' + message.content + '<｜tool▁output▁end｜>' }}{% set ns.tool = true %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not ns.tool %}
{{- '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}
{%- endif %}"""
"""Arguments of calls as text, and thoughts by a variable."""

BEGINS = ("<bos>", "<s>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>")
"""Tokens that begin a text."""

IM_TOKENS = ("<|im_start|>", "<|im_end|>")
THINK = "<think>\n{}\n</think>\n\n"
LLAMA_TOKENS = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
)
HARMONY_TOKENS = (
    "<|start|>",
    "<|channel|>",
    "<|constrain|>",
    "<|message|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
)


@dataclass(frozen=True)
class Family:
    """A family of models, and the format of its answers.

    name: name of the response template.
    config: configuration class of the model.
    options: options of the configuration.
    special, added: control tokens that are special, and others.
    ends: tokens that end an answer, that of a text first and that of a call last.
    thought: format of a thought; None if the family does not think.
    prose: format of the text before calls.
    content: format of the text of an answer without calls.
    write_calls: function that writes calls; None if the family has none.
    max_calls: maximum number of calls in an answer.
    opened: end of the prompt that begins the thought.
    params: parameters with which the model thinks.
    switch: texts of the prompt by level of thinking.
    keeps_thoughts: the template renders thoughts of earlier turns.
    keeps_thoughts_of_calls: the template renders the thought before a call in the same turn.
    """

    name: str
    chat_template: str
    config: Callable[..., Any]
    options: Mapping[str, Any]
    special: tuple[str, ...]
    added: tuple[str, ...] = ()
    ends: tuple[str, ...] = ("<|im_end|>",)
    thought: str | None = None
    prose: str = "{}"
    content: str = "{}"
    write_calls: Callable[[Sequence[Call]], str] | None = None
    max_calls: int = 2
    opened: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    switch: Mapping[str, str] = field(default_factory=dict)
    keeps_thoughts: bool = False
    keeps_thoughts_of_calls: bool = False
    tokenizer_of: TokenizerOf = byte_level

    def answer(self, content: str = "", thought: str | None = None, calls: Sequence[Call] = ()) -> str:
        """Return the text that a model of the family writes, up to the token that ends the answer."""
        text = "" if thought is None or self.thought is None else self.thought.format(thought)
        text = text.removeprefix(self.opened)
        if not calls:
            return text + self.content.format(content) + self.ends[0]
        assert self.write_calls is not None
        return text + (self.prose.format(content) if content else "") + self.write_calls(calls) + self.ends[-1]

    @property
    def open_thought(self) -> str:
        """Text with which the model begins a thought."""
        assert self.thought is not None
        return self.thought.partition("{}")[0].removeprefix(self.opened)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, with the chat template."""
        tokenizer = self.tokenizer_of(self.special, self.added, self.ends[0])
        tokenizer.chat_template = self.chat_template
        tokenizer.bos_token = next((token for token in self.special if token in BEGINS), None)
        return tokenizer

    @functools.cached_property
    def model(self) -> Any:
        """A model with random weights, in two layers."""
        torch.manual_seed(4)
        config = self.config(
            vocab_size=len(self.tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=8192,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
            **self.options,
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        model.generation_config.eos_token_id = self.tokenizer.convert_tokens_to_ids(list(self.ends))
        return model

    def ids_of(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


FAMILIES = {
    "Qwen3": Family(
        "qwen3",
        QWEN3_TEMPLATE,
        Qwen3Config,
        GROUPED,
        IM_TOKENS,
        ("<think>", "</think>", "<tool_call>", "</tool_call>"),
        thought=THINK,
        write_calls=_json_calls("<tool_call>\n", "\n</tool_call>", "\n"),
        switch={"off": "<think>\n\n</think>\n\n"},
        keeps_thoughts_of_calls=True,
    ),
    "Qwen3.5": Family(
        "qwen3_5",
        QWEN3_5_TEMPLATE,
        Qwen3_5TextConfig,
        {**GROUPED, **QWEN3_5},
        IM_TOKENS,
        ("<think>", "</think>", "<tool_call>", "</tool_call>"),
        thought=THINK,
        write_calls=_xml_calls,
        opened="<think>\n",
        switch={"off": "<think>\n\n</think>\n\n"},
        keeps_thoughts_of_calls=True,
    ),
    "Hermes": Family(
        "hermes",
        HERMES_TEMPLATE,
        LlamaConfig,
        GROUPED,
        IM_TOKENS,
        write_calls=_json_calls("<tool_call>\n", "\n</tool_call>", "\n"),
    ),
    "a thinking model without tools": Family(
        "thinking",
        THINKING_TEMPLATE,
        LlamaConfig,
        GROUPED,
        IM_TOKENS,
        thought=THINK,
        keeps_thoughts=True,
    ),
    "gpt-oss": Family(
        "harmony",
        HARMONY_TEMPLATE,
        GptOssConfig,
        GPT_OSS,
        HARMONY_TOKENS,
        ends=("<|return|>", "<|call|>"),
        thought="<|channel|>analysis<|message|>{}<|end|><|start|>assistant",
        prose="<|channel|>commentary<|message|>{}<|end|><|start|>assistant",
        content="<|channel|>final<|message|>{}",
        write_calls=_named_calls("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", ""),
        max_calls=1,
        switch={level: f"Reasoning: {level}" for level in ("low", "medium", "high")},
    ),
    "LLM-jp-4": Family(
        "harmony",
        HARMONY_TEMPLATE,
        LlamaConfig,
        GROUPED,
        HARMONY_TOKENS,
        ends=("<|return|>", "<|call|>"),
        thought="<|channel|>analysis<|message|>{}<|end|><|start|>assistant",
        prose="<|channel|>commentary<|message|>{}<|end|><|start|>assistant",
        content="<|channel|>final<|message|>{}",
        write_calls=_named_calls(" to=functions.", "<|channel|>commentary json<|message|>", ""),
        max_calls=1,
        switch={level: f"Reasoning: {level}" for level in ("low", "medium", "high")},
        tokenizer_of=space_moving,
    ),
    "Gemma 4": Family(
        "gemma4",
        GEMMA4_TEMPLATE,
        Gemma4TextConfig,
        GEMMA4,
        (
            "<bos>",
            "<|turn>",
            "<turn|>",
            "<|channel>",
            "<channel|>",
            "<|think|>",
            "<|tool>",
            "<tool|>",
            "<|tool_call>",
            "<tool_call|>",
            "<|tool_response>",
            "<tool_response|>",
            '<|"|>',
        ),
        ends=("<turn|>", "<|tool_response>"),
        thought="<|channel>thought\n{}\n<channel|>",
        write_calls=_gemma_calls("<|tool_call>", '<|"|>', "<tool_call|>"),
        params={"thinking": "high"},
        switch={"high": "<|think|>"},
        keeps_thoughts_of_calls=True,
        tokenizer_of=byte_fallback,
    ),
    "FunctionGemma": Family(
        "functiongemma",
        FUNCTION_GEMMA_TEMPLATE,
        Gemma3TextConfig,
        {**GROUPED, "sliding_window": 64},
        (
            "<bos>",
            "<start_of_turn>",
            "<end_of_turn>",
            "<start_function_declaration>",
            "<end_function_declaration>",
            "<start_function_call>",
            "<end_function_call>",
            "<start_function_response>",
            "<end_function_response>",
            "<escape>",
        ),
        ends=("<end_of_turn>", "<start_function_response>"),
        write_calls=_gemma_calls("<start_function_call>", "<escape>", "<end_function_call>"),
        tokenizer_of=byte_fallback,
    ),
    "Mistral": Family(
        "mistral",
        MISTRAL_TEMPLATE,
        Ministral3Config,
        {**GROUPED, "rope_parameters": MINISTRAL_ROPE},
        (
            "<s>",
            "</s>",
            "[INST]",
            "[/INST]",
            "[SYSTEM_PROMPT]",
            "[/SYSTEM_PROMPT]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[MODEL_SETTINGS]",
            "[/MODEL_SETTINGS]",
            "[TOOL_CALLS]",
            "[ARGS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
            "[THINK]",
            "[/THINK]",
        ),
        ends=("</s>",),
        thought="[THINK]{}[/THINK]",
        write_calls=_named_calls("[TOOL_CALLS]", "[ARGS]", ""),
        params={"thinking": "high"},
        switch={"high": '"high"', "off": '"none"'},
    ),
    "Mistral 7B": Family(
        "mistral_list",
        MISTRAL_LIST_TEMPLATE,
        MistralConfig,
        GROUPED,
        ("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]")
        + ("[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ends=("</s>",),
        content=" {}",
        write_calls=_mistral_list,
        tokenizer_of=functools.partial(byte_fallback, prefix=True),
    ),
    "Llama 3": Family(
        "llama3",
        LLAMA3_TEMPLATE,
        LlamaConfig,
        GROUPED,
        LLAMA_TOKENS,
        ends=("<|eot_id|>", "<|eom_id|>"),
        write_calls=_json_calls("<|python_tag|>", "", "; ", "parameters"),
        max_calls=1,
    ),
    "a thinking Llama 3": Family(
        "llama3_thinking",
        LLAMA3_THINKING_TEMPLATE,
        LlamaConfig,
        GROUPED,
        LLAMA_TOKENS,
        ends=("<|eot_id|>",),
        thought=THINK,
        write_calls=_json_calls("", "", "\n", "parameters"),
        max_calls=1,
    ),
    "DeepSeek": Family(
        "deepseek",
        DEEPSEEK_TEMPLATE,
        DeepseekV3Config,
        DEEPSEEK,
        (
            "<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            "<｜User｜>",
            "<｜Assistant｜>",
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁call▁end｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁output▁begin｜>",
            "<｜tool▁output▁end｜>",
        ),
        ("<think>", "</think>"),
        ends=("<｜end▁of▁sentence｜>",),
        thought="<think>{}</think>",
        write_calls=_deepseek_calls,
        opened="<think>",
        params={"thinking": "high"},
        switch={"high": "<think>", "off": "</think>"},
    ),
    "DeepSeek R1 on Qwen": Family(
        "deepseek",
        DEEPSEEK_TEMPLATE.replace("('<think>' if thinking else '</think>')", "'<think>\\n'"),
        Qwen2Config,
        GROUPED,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        ("<think>", "</think>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>")
        + ("<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
        ends=("<｜end▁of▁sentence｜>",),
        thought=THINK,
        write_calls=_deepseek_calls,
        opened="<think>\n",
    ),
}
"""Families by the names of models."""


class FamilyScript(TokenSampler):
    """A sampler that answers each question with a text, as far as it may choose.

    answers: texts by question. The question that is last in the prompt is answered; without any, the answer is empty.
    prompts: texts of the prompts so far, with control tokens.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self.answers: dict[str, str] = {}
        self.prompts: list[str] = []
        self._remaining: dict[int, list[int]] = {}
        """Tokens of each running answer that are not written yet, by its seed."""

    def sample(
        self, logits: torch.Tensor, token_ids: Sequence[Sequence[int]], params: Sequence[GenerationParams]
    ) -> list[int]:
        return [self._choose(*row) for row in zip(logits, token_ids, params, strict=True)]

    def _choose(self, logits: torch.Tensor, ids: Sequence[int], params: GenerationParams) -> int:
        if params.seed not in self._remaining:
            self._remaining[params.seed] = self._begin(ids)
        remaining = self._remaining[params.seed]
        allowed = logits > -torch.inf
        if allowed.sum() == 1 or not remaining or not allowed[remaining[0]]:
            token = int(logits.argmax())
        else:
            token = remaining.pop(0)
        return token

    def _begin(self, prompt_ids: Sequence[int]) -> list[int]:
        prompt = self._family.tokenizer.decode(prompt_ids)
        self.prompts.append(prompt)
        question = max(self.answers, key=prompt.rfind, default="")
        return self._family.ids_of(self.answers.get(question, self._family.ends[0]))


def chat_stream_of(family: Family, script: FamilyScript, **options: Any) -> ChatStream:
    """Return a server of a family whose model thinks, with answers of up to 1,000 tokens."""
    engine = TransformersEngine(
        family.model, family.tokenizer, token_sampler=script, kv_cache_bytes=64 << 20, prefix_cache_bytes=4 << 20
    )
    params = GenerationParams(max_new_tokens=1000, **family.params)
    return ChatStream(**{"engine": engine, "params": params, "limits": Limits(context_len=4096)} | options)
