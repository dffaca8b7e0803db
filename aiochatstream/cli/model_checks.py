"""Checks of a loaded model, each of which is a line of ``aiochatstream check``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from aiochatstream.cli.check_texts import CheckTexts
from aiochatstream.cli.concurrency import default_slots
from aiochatstream.console import model_options, prompt_options
from aiochatstream.engines import Delta, Prompt
from aiochatstream.extras import install_command
from aiochatstream.params import GenerationParams
from aiochatstream.prompts import AbstractChatPrompt, ChatPrompt, CompletionsOnly, TemplateArguments
from aiochatstream.prompts.template_traits import TOOL, TOOL_NAME, TemplateTraits, as_parts, refusals, traits_of
from aiochatstream.texts import Texts, format_bytes

if TYPE_CHECKING:
    from aiochatstream.engines.transformers import TransformersEngine

Status = Literal["ok", "warning", "broken"]

SPEED_TOKENS = 24
"""Number of tokens of the answer whose speed is measured."""

SAMPLES = ("こんにちは、世界。", "絵文字 👩‍👩‍👧 🇯🇵 🙂", "  two  spaces,\n\n\tlines and tabs ")
"""Texts that tokenizers split within characters, or whose spaces they move."""

QUESTION = {"role": "user", "content": "probequestion1357"}
THOUGHT, CONTENT = "Thinking about 東京 and 1 < 2.", "The answer is 東京 🙂."
ARGUMENTS = {"probe": '東京 "3 > 2"'}


@dataclass(frozen=True)
class CheckResult:
    """A line of the screen.

    name: name of the check, the same in all languages.
    values: values in the text, for programs.
    """

    name: str
    status: Status
    text: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model, and the texts for its checks.

    source: the model as the user specified it; None for the small model.
    prompt_class: format of its prompts.
    context_len: maximum number of tokens of prompt and answer; None for the model's limit.
    """

    engine: TransformersEngine
    source: str | None
    prompt_class: type[AbstractChatPrompt]
    check_texts: CheckTexts
    texts: Texts
    context_len: int | None = None

    @property
    def tokenizer(self) -> Any:
        return self.engine.tokenizer

    @property
    def uses_template(self) -> bool:
        """True if prompts are written by the model's chat template."""
        return issubclass(self.prompt_class, ChatPrompt)

    @cached_property
    def traits(self) -> TemplateTraits:
        return traits_of(self.tokenizer, tools=True)

    def result(self, name: str, status: Status, text: str, /, **values: Any) -> CheckResult:
        """Return a result whose text contains ``values``.

        :param text: name of the text.
        """
        return CheckResult(name, status, getattr(self.check_texts, text).format(**values), values)

    def render(self, *messages: Mapping[str, Any], starts_answer: bool = False) -> str:
        """Return ``messages`` as the chat template writes them. Raise the errors of refusals."""
        if self.traits.parts:
            messages = tuple({**message, "content": as_parts(message["content"])} for message in messages)
        return str(
            self.tokenizer.apply_chat_template(
                list(messages),
                tools=[TOOL] if self.traits.tools else None,
                add_generation_prompt=starts_answer,
                tokenize=False,
            )
        )

    def read(self, start: str, answer: str) -> list[Delta]:
        """Return the deltas of an answer, as if the model generated it.

        :param start: text of the prompt.
        """
        ids, answer_ids = (list(self.tokenizer.encode(text, add_special_tokens=False)) for text in (start, answer))
        return self.engine.read(Prompt([], ids, tools=(TOOL,)), answer_ids)


def check_weights(model: LoadedModel) -> CheckResult:
    """Report the size of the weights."""
    memory = model.engine.describe()["weights"]
    return CheckResult("weights", "ok", model_options.describe_weights(model.source, memory, model.texts))


def check_speed(model: LoadedModel) -> CheckResult:
    """Report the device, the dtype and the speed of a short answer."""
    engine, description = model.engine, model.engine.describe()
    prompt = Prompt([], list(model.tokenizer.encode("Hello")) or [0], chat=False)
    params = GenerationParams(max_new_tokens=SPEED_TOKENS, temperature=0.0, ignore_eos=True)
    try:
        times = [time.perf_counter() for delta in engine.generate(prompt, params) if delta.token_ids]
    except RuntimeError as error:
        return model.result("device", "broken", "cannot_decode", reason=str(error))
    speed = float(f"{(len(times) - 1) / (times[-1] - times[0]):.3g}")
    values = {"speed": speed, "device": description["device"], "dtype": description["dtype"]}
    if not engine.linear_shapes or engine.quantization:
        return model.result("device", "ok", "speed", **values)
    from aiochatstream.engines.transformers.cpu import dtype_trial  # loaded together with the model

    seconds = dtype_trial.seconds_by_dtype(engine.linear_shapes)
    values |= {f"{name}_seconds": float(f"{time:.2g}") for name, time in seconds.items()}
    if engine.has_slow_dtype:
        return model.result("device", "warning", "slow_dtype", **values)
    return model.result("device", "ok", "speed_cpu", **values)


def check_batching(model: LoadedModel) -> CheckResult:
    """Report the number of concurrent answers of a server, and the reason why they are not batched."""
    reason = model.engine.batch_obstacle
    slots = default_slots(model.engine.describe()["device"], batched=reason is None)
    if reason is None:
        return model.result("batching", "ok", "batched", slots=slots)
    return model.result("batching", "warning", "not_batched", slots=slots, reason=reason)


def check_context(model: LoadedModel) -> CheckResult:
    """Report the maximum length of the context, its size, and the number of slots that fit in memory."""
    engine = model.engine
    context = min(filter(None, (engine.max_context_len, model.context_len)), default=None)
    if context is None:
        return model.result("context", "ok", "context_unlimited")
    if engine.kv_token_bytes is None or engine.max_kv_cache_bytes is None:
        return model.result("context", "ok", "context_alone", context=context)
    slots, token = engine.max_kv_cache_bytes // (engine.kv_token_bytes * context), format_bytes(engine.kv_token_bytes)
    return model.result("context", "ok", "context_batched", context=context, token=token, slots=slots)


def check_template(model: LoadedModel) -> CheckResult:
    """Report the format of prompts, and the capabilities of a chat template."""
    if issubclass(model.prompt_class, CompletionsOnly):
        return model.result("template", "warning", "no_template", remedy=prompt_options.REMEDY)
    if not model.uses_template:
        return model.result("template", "ok", "preset", name=model.prompt_class.__name__)
    if not model.traits.text:
        return model.result("template", "broken", "no_user")
    texts, traits = model.check_texts, model.traits
    levels = TemplateArguments.of(model.tokenizer).distinct_levels()
    return model.result(
        "template",
        "ok",
        "roles",
        system=texts.system_yes if traits.system else texts.system_no,
        tools=texts.tools_yes if traits.tools else texts.tools_no,
        switch=texts.switch_yes.format(levels=", ".join(levels)) if levels else texts.switch_no,
    )


def check_answer(model: LoadedModel) -> CheckResult:
    """Report the text that begins an answer, and whether the token after it in the chat template ends answers."""
    start = _quoted(_answer_start(model))
    whole = model.render(QUESTION, {"role": "assistant", "content": CONTENT})
    tokenizer, eos_ids = model.tokenizer, model.engine.eos_ids
    control_ids = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} | eos_ids
    ids = tokenizer.encode(whole.rpartition(CONTENT)[2], add_special_tokens=False)
    ends = sorted((id_ for id_ in ids if id_ in control_ids), key=lambda id_: id_ not in eos_ids)
    if not ends:
        return model.result("answer", "warning", "end_unknown", start=start)
    end = _quoted(tokenizer.decode(ends[:1]))
    if ends[0] not in eos_ids:
        return model.result("answer", "broken", "eos_misses", start=start, end=end)
    return model.result("answer", "ok", "eos_ends", start=start, end=end)


def check_response_template(model: LoadedModel) -> CheckResult:
    """Report the origin of the response template."""
    from aiochatstream.engines.transformers.response_templates import TEMPLATES

    template = model.engine.response_template
    if template is None:
        return model.result("response", "ok", "no_response_template")
    name = next((name for name, known in TEMPLATES.items() if known is template), None)
    if name is None:
        return model.result("response", "ok", "of_checkpoint")
    return model.result("response", "ok", "of_table", name=name)


def check_thought(model: LoadedModel) -> CheckResult:
    """Read an answer with a thought, as the chat template writes it."""

    def is_read(deltas: list[Delta]) -> bool:
        thought = "".join(delta.thinking for delta in deltas).strip()
        return thought == THOUGHT and "".join(delta.text for delta in deltas).strip() == CONTENT

    field_name = model.traits.thought_field or "reasoning_content"
    return _round_trip(model, "thought", THOUGHT, is_read, {"content": CONTENT, field_name: THOUGHT})


def check_call(model: LoadedModel) -> CheckResult:
    """Read an answer with a call of a tool, as the chat template writes it."""

    def is_read(deltas: list[Delta]) -> bool:
        calls = [(call.name, json.loads(call.arguments)) for delta in deltas for call in delta.tool_calls]
        return calls == [(TOOL_NAME, ARGUMENTS)]

    def message(arguments: Any) -> dict[str, Any]:
        call = {"id": "probe1357", "type": "function", "function": {"name": TOOL_NAME, "arguments": arguments}}
        return {"content": "", "tool_calls": [call]}

    # some templates write an object as JSON, others expect its text
    return _round_trip(model, "call", TOOL_NAME, is_read, message(ARGUMENTS), message(json.dumps(ARGUMENTS)))


def check_streaming(model: LoadedModel) -> CheckResult:
    """Compare streamed texts with the same tokens, decoded as a whole."""
    tokenizer = model.tokenizer
    kind, special_ids = type(tokenizer).__name__, set(tokenizer.all_special_ids)
    unknown = []
    for sample in SAMPLES:
        ids = [id_ for id_ in tokenizer.encode(sample, add_special_tokens=False) if id_ not in special_ids]
        expected = str(tokenizer.decode(ids, skip_special_tokens=True))
        actual = "".join(delta.text for delta in model.engine.read(Prompt([], [], chat=False), ids))
        if actual != expected:
            values = {"actual": _quoted(actual), "expected": _quoted(expected)}
            return model.result("streaming", "broken", "other_text", tokenizer=kind, **values)
        if expected.strip() != sample.strip():
            unknown.append(_quoted(sample))
    if unknown:
        return model.result("streaming", "warning", "unwritable", tokenizer=kind, text=", ".join(unknown))
    return model.result("streaming", "ok", "same_text", tokenizer=kind)


def check_settings(model: LoadedModel) -> CheckResult:
    """Report the parameters in the model's generation_config."""
    params = model.engine.default_params
    if not params:
        return model.result("settings", "ok", "no_settings")
    values = ", ".join(f"{name} {value:g}" for name, value in params.items())
    return model.result("settings", "ok", "settings_of_model", values=values)


def check_packages(model: LoadedModel) -> CheckResult:
    """Report packages that would add a capability."""
    from aiochatstream.engines.transformers.requirements import DEQUANTIZED_WITHOUT, missing_packages

    method = model.engine.quantization
    kernels = missing_packages(DEQUANTIZED_WITHOUT.get(method or "", ()))
    if kernels:
        command = f"pip install {' '.join(kernels)}"
        return model.result("packages", "warning", "missing_kernels", method=method, command=command)
    if missing_packages(["llguidance"]):
        return model.result("packages", "warning", "missing_constrained", command=install_command("constrained"))
    return model.result("packages", "ok", "nothing_missing")


Check = Callable[[LoadedModel], CheckResult]

CHECKS: Mapping[str, Check] = {
    "weights": check_weights,
    "device": check_speed,
    "batching": check_batching,
    "context": check_context,
    "template": check_template,
    "answer": check_answer,
    "response": check_response_template,
    "thought": check_thought,
    "call": check_call,
    "streaming": check_streaming,
    "settings": check_settings,
    "packages": check_packages,
}
"""Checks by name, in the order of the screen."""

TEMPLATE_CHECKS = {"answer", "response", "thought", "call"}
"""Checks of models whose prompts are written by a chat template."""


def run_checks(model: LoadedModel) -> list[CheckResult]:
    """Return the results of all checks. One that raises an error is broken."""
    results = []
    for name, check in CHECKS.items():
        if name in TEMPLATE_CHECKS and not model.uses_template:
            continue
        try:
            results.append(check(model))
        except Exception as error:  # noqa: BLE001 - code and templates of models may raise any error
            results.append(CheckResult(name, "broken", f"{type(error).__name__}: {error}"))
    return results


def _round_trip(
    model: LoadedModel,
    name: str,
    probe: str,
    is_read: Callable[[list[Delta]], bool],
    *messages: Mapping[str, Any],
) -> CheckResult:
    """Write an answer with the chat template and read it with the response template.

    :param probe: text of the answer.
    :param is_read: returns True if the deltas contain all of the answer.
    :param messages: forms of the assistant's message; the first that the template accepts is written.
    """
    for message in messages:
        try:
            whole = model.render(QUESTION, {"role": "assistant", **message})
        except refusals():
            continue
        if probe in whole:
            break
    else:
        return model.result(name, "ok", "is_not_written")
    if model.engine.response_template is None:
        return model.result(name, "warning", "is_text")
    start = model.render(QUESTION, starts_answer=True)
    if not whole.startswith(start):
        return model.result(name, "warning", "is_not_comparable")
    deltas = model.read(start, whole[len(start) :])
    if is_read(deltas):
        return model.result(name, "ok", "survives")
    return model.result(name, "broken", "is_lost", actual=_quoted("".join(d.thinking + d.text for d in deltas)))


def _answer_start(model: LoadedModel) -> str:
    """Return the text that begins an answer."""
    start = model.render(QUESTION, starts_answer=True)
    before = model.render(QUESTION)
    return start[len(before) :] if start.startswith(before) else start.rpartition(QUESTION["content"])[2]


def _quoted(text: str) -> str:
    """Return ``text`` in one line."""
    return json.dumps(text, ensure_ascii=False)
