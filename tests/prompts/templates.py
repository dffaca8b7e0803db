"""Chat templates of thoughtful models: the structure of the published ones, and tokenizers with them."""

from __future__ import annotations

import copy

from transformers import PreTrainedTokenizerBase

from tests.engines.tokenizers import BYTE_FALLBACK

QWEN = """\
{%- if language is defined %}<|im_start|>system
Answer in {{ language }}.<|im_end|>
{% endif %}
{%- set ns = namespace(last_user=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last_user = loop.index0 %}{% endif %}\
{% endfor %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and loop.index0 > ns.last_user %}
{{- '<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' }}
{%- endif %}
{{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
"""Thoughts by default, and only those of the newest answer in the prompt, like Qwen3."""

GPT_OSS = """\
{%- macro system() %}
{%- if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}
{{- 'Reasoning: ' + reasoning_effort + '\\n' + strftime_now('%Y') }}
{%- endmacro %}
{{- '<|start|>system<|message|>' }}{{ system() }}{{ '<|end|>' }}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- if message.thinking and loop.last %}\
{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}{% endif %}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
{%- else %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""
"""A level of effort and channels, like gpt-oss."""

DEEPSEEK = """\
{%- if not thinking is defined %}{% set thinking = false %}{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}{{ '<Assistant></think>' + message.content + '<eos>' }}
{%- else %}{{ '<' + message.role + '>' + message.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<Assistant>' + ('<think>' if thinking else '</think>') }}{% endif %}"""
"""No thoughts by default, and a variable ``thinking``, like DeepSeek V3.1."""

TWO_EFFORTS = """\
{%- if reasoning_effort is defined and reasoning_effort not in ['none', 'high'] %}
{{- raise_exception('reasoning_effort must be none or high') }}
{%- endif %}
{%- for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"""
"""Two efforts, of which one is no thoughts, like Mistral Small 4."""

FLAG_AND_EFFORT = """\
{%- for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}
{%- if enable_thinking | default(true) %}<think>{{ reasoning_effort | default('high') | upper }}{% endif %}"""
"""Both switches."""


def with_template(template: str, tokenizer: PreTrainedTokenizerBase = BYTE_FALLBACK) -> PreTrainedTokenizerBase:
    """Return a copy of ``tokenizer`` with a chat template."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other
