"""Tiny models of today's families: their architecture, control tokens and chat template, with answers by the tests.

The weights are random: a sampler writes the answers.
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
from tests import model_templates
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
    "first_k_dense_replace": 0,
}

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
DEEPSEEK_ROLES = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
DEEPSEEK_CALLS = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
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
    opened: end of a prompt that begins the thought.
    params: parameters with which the model thinks.
    switch: texts of the prompt by level of thinking.
    keeps_thoughts: the template renders thoughts of earlier turns.
    keeps_thoughts_of_calls: the template renders the thought before a call in the same turn.
    renders_newest_thought: the template opens the thought, or renders that of the newest answer.
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
    renders_newest_thought: bool = True
    tokenizer_of: TokenizerOf = byte_level

    def answer(self, content: str = "", thought: str | None = None, calls: Sequence[Call] = ()) -> str:
        """Return the text that a model of the family writes, up to the token that ends the answer."""
        text = "" if thought is None or self.thought is None else self.thought.format(thought)
        if not calls:
            return text + self.content.format(content) + self.ends[0]
        assert self.write_calls is not None
        return text + (self.prose.format(content) if content else "") + self.write_calls(calls) + self.ends[-1]

    @property
    def open_thought(self) -> str:
        """Text with which the model begins a thought."""
        assert self.thought is not None
        return self.thought.partition("{}")[0]

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, with the chat template."""
        tokenizer = self.tokenizer_of(self.special, self.added, self.ends[0])
        tokenizer.chat_template = self.chat_template
        tokenizer.bos_token = next((token for token in self.special if token in BEGINS), None)
        return tokenizer

    @functools.cached_property
    def model(self) -> Any:
        """A model with random weights: a layer of each type."""
        torch.manual_seed(4)
        config = self.config(
            vocab_size=len(self.tokenizer),
            hidden_size=32,
            num_hidden_layers=len(self.options.get("layer_types", ["full_attention"])),
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
        model_templates.QWEN3,
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
        model_templates.QWEN3_5,
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
        model_templates.HERMES,
        LlamaConfig,
        GROUPED,
        IM_TOKENS,
        write_calls=_json_calls("<tool_call>\n", "\n</tool_call>", "\n"),
    ),
    "a thinking model without tools": Family(
        "thinking",
        model_templates.THINKING,
        LlamaConfig,
        GROUPED,
        IM_TOKENS,
        thought=THINK,
        keeps_thoughts=True,
    ),
    "gpt-oss": Family(
        "harmony",
        model_templates.HARMONY,
        GptOssConfig,
        GPT_OSS,
        HARMONY_TOKENS,
        ends=("<|return|>", "<|call|>"),
        thought="<|channel|>analysis<|message|>{}<|end|><|start|>assistant",
        prose="<|channel|>commentary<|message|>{}<|end|><|start|>assistant",
        content="<|channel|>final<|message|>{}",
        write_calls=_named_calls("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", ""),
        keeps_thoughts_of_calls=True,
        max_calls=1,
        switch={level: f"Reasoning: {level}" for level in ("low", "medium", "high")},
    ),
    "LLM-jp-4": Family(
        "harmony",
        model_templates.HARMONY,
        LlamaConfig,
        GROUPED,
        HARMONY_TOKENS,
        ends=("<|return|>", "<|call|>"),
        thought="<|channel|>analysis<|message|>{}<|end|><|start|>assistant",
        prose="<|channel|>commentary<|message|>{}<|end|><|start|>assistant",
        content="<|channel|>final<|message|>{}",
        write_calls=_named_calls(" to=functions.", "<|channel|>commentary json<|message|>", ""),
        keeps_thoughts_of_calls=True,
        max_calls=1,
        switch={level: f"Reasoning: {level}" for level in ("low", "medium", "high")},
        tokenizer_of=space_moving,
    ),
    "Gemma 4": Family(
        "gemma4",
        model_templates.GEMMA4,
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
        renders_newest_thought=False,
    ),
    "FunctionGemma": Family(
        "functiongemma",
        model_templates.FUNCTION_GEMMA,
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
        model_templates.MISTRAL,
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
        renders_newest_thought=False,
    ),
    "Mistral 7B": Family(
        "mistral_list",
        model_templates.MISTRAL_LIST,
        MistralConfig,
        GROUPED,
        (
            "<s>",
            "</s>",
            "[INST]",
            "[/INST]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_CALLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ),
        ends=("</s>",),
        write_calls=_mistral_list,
        tokenizer_of=functools.partial(byte_fallback, prefix=True),
    ),
    "Llama 3": Family(
        "llama3",
        model_templates.LLAMA3,
        LlamaConfig,
        GROUPED,
        LLAMA_TOKENS,
        ends=("<|eot_id|>", "<|eom_id|>"),
        write_calls=_json_calls("<|python_tag|>", "", "; ", "parameters"),
        max_calls=1,
    ),
    "a thinking Llama 3": Family(
        "llama3_thinking",
        model_templates.LLAMA3_THINKING,
        LlamaConfig,
        GROUPED,
        LLAMA_TOKENS,
        ends=("<|eot_id|>",),
        thought=THINK,
        prose="{}\n",
        write_calls=_json_calls("", "", "\n", "parameters"),
        max_calls=1,
        renders_newest_thought=False,
    ),
    "DeepSeek": Family(
        "deepseek",
        model_templates.DEEPSEEK,
        DeepseekV3Config,
        DEEPSEEK,
        (*DEEPSEEK_ROLES, *DEEPSEEK_CALLS),
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
        model_templates.DEEPSEEK_R1,
        Qwen2Config,
        GROUPED,
        DEEPSEEK_ROLES,
        ("<think>", "</think>", *DEEPSEEK_CALLS),
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
        if remaining and not allowed[remaining[0]] and not self._family.tokenizer.decode(remaining[:1]).strip():
            remaining.pop(0)  # the space before a text, which a constraint excludes
        if remaining and allowed[remaining[0]]:
            return remaining.pop(0)
        return int(logits.argmax())

    def _begin(self, prompt_ids: Sequence[int]) -> list[int]:
        family = self._family
        prompt = family.tokenizer.decode(prompt_ids)
        self.prompts.append(prompt)
        question = max(self.answers, key=prompt.rfind, default="")
        answer = self.answers.get(question, family.ends[0])
        if family.opened and prompt.endswith(family.opened):
            answer = answer.removeprefix(family.opened)
        return family.ids_of(answer)


def chat_stream_of(family: Family, script: FamilyScript) -> ChatStream:
    """Return a server of a family whose model thinks, with answers of up to 1,000 tokens."""
    engine = TransformersEngine(
        family.model, family.tokenizer, token_sampler=script, kv_cache_bytes=64 << 20, prefix_cache_bytes=4 << 20
    )
    params = GenerationParams(max_new_tokens=1000, **family.params)
    return ChatStream(engine=engine, params=params, limits=Limits(context_len=4096))
