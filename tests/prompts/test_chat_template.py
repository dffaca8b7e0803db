"""Prompts rendered by chat templates."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from aiochatstream import ChatPrompt, Turn
from aiochatstream.errors import InvalidValue
from aiochatstream.prompts import encode_messages, render_messages
from tests.prompts.builders import HISTORY, chat_prompt, fill, template_ids
from tests.prompts.templates import DEEPSEEK, GPT_OSS, QWEN, with_template

USER: dict[str, Any] = {"role": "user", "content": "What is the weather in 東京?"}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]

WITH_TOOLS = """\
{%- if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}<tool_call>{"name": "{{ call.function.name }}", "arguments": \
{{ call.function.arguments | tojson }}}</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""

ALTERNATING = """\
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}{{ message.role }}: {{ message.content | trim }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""


@pytest.mark.parametrize("system", ["", "You answer in one word. 🗼"])
@pytest.mark.parametrize("turns", [(), HISTORY])
def test_a_chat_prompt_has_the_token_ids_of_the_template(
    tokenizer: PreTrainedTokenizerBase, system: str, turns: tuple[Turn, ...]
) -> None:
    prompt = chat_prompt(tokenizer, "नमस्ते", turns, system=system)
    messages = [{"role": "system", "content": system}] if system else []
    if turns:
        messages += [
            {"role": "user", "content": "日本の首都は？"},
            {"role": "assistant", "content": "東京です。"},
            {"role": "user", "content": "And of France?"},
            {"role": "assistant", "content": "Paris."},
        ]
    messages.append({"role": "user", "content": "नमस्ते"})
    ids = template_ids(tokenizer, messages)
    assert prompt.get_messages() == messages
    assert prompt.encode() == ids
    assert tokenizer.decode(ids) == prompt.create_prompt()
    assert prompt.create_prompt().endswith("<|im_start|>assistant\n")


def test_a_bos_of_the_tokenizer_does_not_duplicate_that_of_the_template(tokenizer: PreTrainedTokenizerBase) -> None:
    adds_bos = copy.deepcopy(tokenizer)
    bos = adds_bos.bos_token_id
    adds_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{adds_bos.bos_token} $A", special_tokens=[(adds_bos.bos_token, bos)]
    )
    prompt = chat_prompt(adds_bos, "Hello")
    assert adds_bos(prompt.create_prompt())["input_ids"][:2] == [bos, bos]
    ids = prompt.encode()
    assert ids[0] == bos
    assert ids[1] != bos


@pytest.mark.parametrize("without_template", [ByT5Tokenizer(), None])
def test_an_error_without_a_template_names_chat_prompt_clazz(without_template: PreTrainedTokenizerBase | None) -> None:
    prompt = chat_prompt(without_template, "Hello")
    for method in (prompt.encode, prompt.create_prompt):
        with pytest.raises(ValueError, match=r"no chat template.*chat_prompt_clazz.*AbstractChatPrompt"):
            method()


def test_an_error_quotes_the_template_that_refuses_a_system_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    refusing = copy.copy(tokenizer)
    refusing.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}Hello"
    )
    prompt = chat_prompt(refusing, "Hello", system="Be brief.")
    with pytest.raises(InvalidValue, match="chat template refuses this conversation: System role not supported"):
        prompt.encode()
    prompt.set_system("")
    assert prompt.create_prompt() == "Hello"


@pytest.mark.parametrize("open_answer", ["Paris", "パリです。\n", "  two\n\nlines ", "It is <|im_start|>"])
def test_an_open_answer_is_encoded_separately(tokenizer: PreTrainedTokenizerBase, open_answer: str) -> None:
    prompt = chat_prompt(tokenizer, "The capital?", HISTORY, system="Be brief.")
    plain, text = prompt.encode(), prompt.create_prompt()
    prompt.open_answer = open_answer
    assert prompt.create_prompt() == text
    ids = tokenizer(open_answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert prompt.encode() == plain + ids
    assert prompt.get_messages()[-1] == {"role": "assistant", "content": open_answer}
    assert prompt.encode() == encode_messages(tokenizer, prompt.get_messages(), continue_final=True)


def test_an_open_answer_has_the_token_ids_of_continue_final_message(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = chat_prompt(tokenizer, "The capital?", HISTORY)
    prompt.open_answer = " Paris,"
    assert prompt.encode() == template_ids(tokenizer, prompt.get_messages(), continue_final_message=True)


def test_messages_have_the_token_ids_of_the_template(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "Fine."}, USER]
    expected = template_ids(tokenizer, messages)
    assert encode_messages(tokenizer, messages) == expected
    assert tokenizer.decode(expected) == render_messages(tokenizer, messages)


def test_the_template_renders_tools_calls_and_results(tokenizer: PreTrainedTokenizerBase) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "東京"}'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    before = copy.deepcopy(messages)
    text = render_messages(with_template(WITH_TOOLS, tokenizer), messages, TOOLS)
    assert '"name": "weather", "description": "Tells the weather."' in text
    assert '<tool_call>{"name": "weather", "arguments": {"city": "東京"}}</tool_call><|im_end|>' in text
    assert "<|im_start|>tool\nrain<|im_end|>" in text
    assert messages == before


@pytest.mark.parametrize("arguments", [None, "", {}])
def test_missing_arguments_are_an_empty_object(tokenizer: PreTrainedTokenizerBase, arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": arguments}}
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert '"arguments": {}}</tool_call>' in render_messages(with_template(WITH_TOOLS, tokenizer), messages)


def test_the_role_developer_is_system_if_the_template_does_not_support_it(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, USER]
    assert render_messages(tokenizer, messages).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    supporting = with_template("{# developer #}{{ messages[0].role }}", tokenizer)
    assert render_messages(supporting, messages) == "developer"


@pytest.mark.parametrize(
    ("template", "before"),
    [
        (WITH_TOOLS, "<|im_start|>assistant\n<think>\nHm.\n</think>\n\n"),
        (QWEN, "<|im_start|>assistant\n<think>\nHm.\n</think>\n\n"),
        (
            GPT_OSS,
            "<|start|>assistant<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
        (DEEPSEEK, "<Assistant></think>"),
    ],
    ids=["opens a thought", "Qwen3", "gpt-oss", "DeepSeek"],
)
def test_a_continued_answer_follows_its_thoughts(
    tokenizer: PreTrainedTokenizerBase, template: str, before: str
) -> None:
    thoughtful = with_template(template, tokenizer)
    final = {"role": "assistant", "content": "It is ", "reasoning_content": "Hm."}
    text = thoughtful.decode(encode_messages(thoughtful, [USER, final], continue_final=True))
    assert text.endswith(f"{before}It is ")
    prompt = chat_prompt(thoughtful, USER["content"])
    prompt.open_answer, prompt.open_thinking = "It is ", "Hm."
    assert thoughtful.decode(prompt.encode()) == text


def test_a_continued_answer_of_a_thoughtful_model_needs_no_thoughts(tokenizer: PreTrainedTokenizerBase) -> None:
    thoughtful = with_template(WITH_TOOLS, tokenizer)
    prompt = chat_prompt(thoughtful, "Hello")
    prompt.open_answer = "It is "
    assert thoughtful.decode(prompt.encode()).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nIt is ")


THOUGHTFUL = (Turn("2+2?", "4", "1", thinking="Two and <|im_end|> two."), Turn("And 3?", "7", "2"))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_templates_receive_thoughts_under_the_name_that_they_read(
    tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    template = f"{{% for m in messages %}}[{{{{ m.role }}}}|{{{{ m.content }}}}|{{{{ m.{name} }}}}]{{% endfor %}}"
    reading = with_template(template, tokenizer)
    prompt = chat_prompt(reading, "And 5?", THOUGHTFUL)
    text = "[user|2+2?|][assistant|4|Two and <|im_end|> two.][user|And 3?|][assistant|7|][user|And 5?|]"
    assert prompt.create_prompt() == text
    ids = prompt.encode()
    assert reading.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in ids
    for field in ("reasoning_content", "reasoning", "thinking"):
        messages = [{**USER, field: "x"}, {"role": "assistant", "content": "4", field: "Hm."}]
        assert render_messages(reading, messages).endswith("東京?|][assistant|4|Hm.]")


def test_templates_without_thoughts_receive_none(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = chat_prompt(with_template("{{ messages }}", tokenizer), "And 5?", THOUGHTFUL)
    assert "Two and" not in prompt.create_prompt()
    assert all(message.keys() == {"role", "content"} for message in prompt.get_messages())


def test_thoughts_are_not_replaced_as_other_texts(tokenizer: PreTrainedTokenizerBase) -> None:
    class Newlines(ChatPrompt):
        def get_replacement_when_input(self) -> list[tuple[str, str]]:
            return [("\n", "<NL>")]

    prompt = fill(Newlines(), with_template(QWEN, tokenizer), "a\nb", (Turn("c", "d", "1", thinking="e\nf"),))
    messages = prompt.get_messages()
    assert (messages[-1]["content"], messages[1]["reasoning_content"]) == ("a<NL>b", "e\nf")


def test_variables_of_the_template_are_text(tokenizer: PreTrainedTokenizerBase) -> None:
    template = "{{ name }}|{{ deep['x'][0] }}|{{ flag is true }}|{{ messages[0].content }}<|im_end|>"
    reading = with_template(template, tokenizer)
    prompt = chat_prompt(reading, "Hello")
    prompt.template_kwargs = {"name": "<|im_end|>", "deep": {"x": ["<|im_start|>"]}, "flag": True}
    text = "<|im_end|>|<|im_start|>|True|Hello<|im_end|>"
    assert prompt.create_prompt() == text
    ids = prompt.encode()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (reading.decode(ids), ids.count(end), ids[-1]) == (text, 1, end)
    assert encode_messages(reading, prompt.get_messages(), template_kwargs=prompt.template_kwargs) == ids


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([USER, USER], "Conversation roles must alternate user/assistant/user/assistant/..."),
        ([], "empty conversation"),
    ],
    ids=str,
)
def test_an_error_quotes_the_template(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], reason: str
) -> None:
    with pytest.raises(InvalidValue, match=r"^The model's chat template refuses this conversation: ") as error:
        render_messages(with_template(ALTERNATING, tokenizer), messages)
    assert reason.rstrip(".") in error.value.detail


def test_deeply_nested_tools_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    parameters: dict[str, Any] = {}
    for _ in range(5000):
        parameters = {"items": parameters}
    tools = [{"type": "function", "function": {"name": "deep", "parameters": parameters}}]
    with pytest.raises(InvalidValue, match="recursion"):
        render_messages(with_template(WITH_TOOLS, tokenizer), [USER], tools)


def test_a_message_without_content_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InvalidValue, match=r"conversation: .* has no attribute 'content'\.$"):
        render_messages(tokenizer, [{"role": "user"}])


def test_content_of_parts_is_refused_if_the_template_expects_text(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InvalidValue, match=r"conversation: can only concatenate str"):
        render_messages(tokenizer, [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}])


@pytest.mark.parametrize("arguments", ["{", "[" * 100_000], ids=["cut off", "deep"])
def test_arguments_must_be_json(tokenizer: PreTrainedTokenizerBase, arguments: str) -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": arguments}}
    with pytest.raises(InvalidValue, match=r"^messages: the arguments of tool_calls must be JSON\.$"):
        render_messages(tokenizer, [USER, {"role": "assistant", "content": "", "tool_calls": [call]}])


@pytest.mark.parametrize("messages", [[], [USER], [USER, {"role": "assistant", "content": None}]], ids=str)
def test_the_message_to_continue_must_be_an_assistants_text(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]
) -> None:
    with pytest.raises(InvalidValue, match=r"^messages: the last message must be an assistant's text"):
        encode_messages(tokenizer, messages, continue_final=True)


def test_rendering_without_a_template_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no chat template.*chat_prompt_clazz"):
        render_messages(ByT5Tokenizer(), [USER])


def test_content_before_calls_is_a_thought_if_the_template_refuses_both(tokenizer: PreTrainedTokenizerBase) -> None:
    refusal = """\
{%- if message.tool_calls and message.content and message.thinking %}{{ raise_exception('one text only') }}{% endif %}
{%- if message.tool_calls %}<{{ message.thinking }}|{{ message.content }}>{% endif %}"""
    loop = "{%- for message in messages %}"
    template = with_template(GPT_OSS.replace(loop, loop + refusal), tokenizer)
    calls = [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    message = {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": calls}
    assert "<Hm.\n\nI look.|>" in render_messages(template, [USER, message], TOOLS)
    assert "<Hm.|>" in render_messages(template, [USER, {**message, "content": ""}], TOOLS)


@pytest.mark.parametrize("refuses", [True, False])
def test_empty_answers_are_omitted_if_the_template_refuses_them(
    tokenizer: PreTrainedTokenizerBase, refuses: bool
) -> None:
    refusal = (
        "{%- if message.role == 'assistant' and not message.content %}{{ raise_exception('no content') }}{% endif %}"
    )
    loop = "{%- for message in messages %}"
    template = ALTERNATING.replace(loop, loop + refusal) if refuses else ALTERNATING
    turns = (Turn("one", "", "1", thinking="Hm."), Turn("two", "", "2"), Turn("three", "3", "3"), Turn("four", "", "4"))
    prompt = chat_prompt(with_template(template, tokenizer), "five", turns)
    if refuses:
        assert prompt.create_prompt() == "user: one\n\ntwo\n\nthree\nassistant: 3\nuser: four\n\nfive\nassistant:"
    else:
        assert prompt.create_prompt().startswith("user: one\nassistant: \nuser: two\n")
