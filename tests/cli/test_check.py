"""``aiochatstream check``: its screen for several kinds of models, its JSON and its exit code."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from aiochatstream.cli import check
from aiochatstream.cli.check_texts import CHECK_TEXTS
from aiochatstream.cli.main import build_parser, main
from aiochatstream.cli.model_checks import CheckResult
from aiochatstream.console import prompt_options
from aiochatstream.engines.token_bytes import byte_level_alphabet
from tests.engines.tokenizers import SpaceMovingTokenizer
from tests.engines.transformers.checkpoints import edit_json, save_model
from tests.engines.transformers.scripted_answers import SPECIAL

QWEN_MARKS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")

QWEN = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.reasoning_content %}{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

HARMONY = """\
{{- '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') + '<|end|>' }}
{%- if tools %}{{ '<|start|>developer<|message|>' + tools | tojson + '<|end|>' }}{% endif %}
{%- for message in messages %}
{%- if message.role != 'assistant' %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
{%- else %}
{%- if message.thinking %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- '<|start|>assistant<|channel|>commentary to=functions.' + call.function.name }}
{{- ' <|constrain|>json<|message|>' + call.function.arguments | tojson + '<|call|>' }}
{%- endfor %}
{%- if message.content %}{{ '<|start|>assistant<|channel|>final<|message|>' + message.content }}
{{- '<|end|>' if add_generation_prompt else '<|return|>' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

PLAIN = """\
{%- for message in messages %}[{{ message.role }}]{{ message.content }}</s>{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""


def save(folder: Path, tokenizer: Any, template: str | None, ends: list[str], **generation: Any) -> str:
    """Save a checkpoint with a chat template, and return its folder."""
    tokenizer.chat_template = template
    save_model(folder, vocab_size=len(tokenizer), max_position_embeddings=512)
    eos = tokenizer.convert_tokens_to_ids(ends) or None
    GenerationConfig(eos_token_id=eos, **generation).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_qwen(folder: Path) -> str:
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 20}
    return save(folder / "tiny-qwen3", byte_tokenizer(QWEN_MARKS), QWEN, ["<|im_end|>"], **sampling)


def save_harmony(folder: Path) -> str:
    return save(folder / "tiny-harmony", byte_tokenizer(SPECIAL), HARMONY, ["<|return|>", "<|call|>"])


def save_base(folder: Path) -> str:
    return save(folder / "tiny-base", byte_tokenizer(QWEN_MARKS), None, ["<|im_end|>"])


def save_python(folder: Path) -> str:
    """Save a checkpoint whose tokenizer is Python code, which moves spaces, like that of LLM-jp-4."""
    path = Path(save(folder / "tiny-python", byte_tokenizer(QWEN_MARKS), None, []))
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (path / file).unlink()
    edit_json(
        path / "tokenizer_config.json",
        tokenizer_class="SpaceMovingTokenizer",
        auto_map={"AutoTokenizer": ["own_tokenizer.SpaceMovingTokenizer", None]},
    )
    code = inspect.getsource(SpaceMovingTokenizer)
    imports = "import re\nfrom collections.abc import Sequence\nfrom typing import Any\nfrom transformers import *\n"
    (path / "own_tokenizer.py").write_text(f"from __future__ import annotations\n{imports}\n{code}")
    (path / "chat_template.jinja").write_text(PLAIN)
    return str(path)


def byte_tokenizer(marks: Sequence[str]) -> Any:
    """Return a tokenizer with a token for each byte and special tokens."""
    vocab = {character: at for at, character in enumerate(byte_level_alphabet())}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    return tokenizer


def run(*arguments: str) -> int:
    return check.main(build_parser().parse_args(["check", "--device", "cpu", "--dtype", "float32", *arguments]))


def normalize(printed: str) -> str:
    """Replace the numbers that depend on the machine."""
    printed = re.sub(r"[\d.e+]+(?= tokens/s| トークン/秒)", "S", printed)
    printed = re.sub(r"[\d.e-]+(?= s in)|(?:(?<=loat32 )|(?<=loat16 ))[\d.e-]+(?= 秒)", "T", printed)
    printed = re.sub(r"(?<=room for )\d+|(?<=この長さの応答 )\d+", "N", printed)
    printed = re.sub(r"ディスク上 [\d.]+ MB、メモリー上 [\d.]+ MB", "ディスク上 X MB、メモリー上 Y MB", printed)
    return printed.replace(prompt_options.REMEDY, "REMEDY")


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Return a function that returns the output since its last call."""
    return lambda: capsys.readouterr().out


SCREENS: dict[Callable[[Path], str], str] = {
    save_qwen: """\
tiny-qwen3
  ok  weights            333 kB
  ok  device             cpu, float32: S tokens/s for one answer (a typical answer: T s in float32, T s in bfloat16)
  ok  batching           answers are decoded together; serve runs 8 at a time
  ok  context            512 tokens, 512 bytes each; room for N answers of this length
  ok  chat template      system prompt, tools, thinking: auto, off, high
  ok  answers            begin with "<|im_start|>assistant\\n", end with "<|im_end|>"
  ok  response template  qwen3, built in
  ok  thoughts           read as written
  ok  tool calls         read as written
  ok  streamed text      Japanese, emoji and spaces as in the whole text (Qwen2Tokenizer)
  ok  settings           of the model: temperature 0.6, top_p 1, top_k 20
  ok  packages           nothing to install
Nothing is broken.
""",
    save_harmony: """\
tiny-harmony
  ok  weights            335 kB
  ok  device             cpu, float32: S tokens/s for one answer (a typical answer: T s in float32, T s in bfloat16)
  ok  batching           answers are decoded together; serve runs 8 at a time
  ok  context            512 tokens, 512 bytes each; room for N answers of this length
  ok  chat template      system prompt, tools, thinking: auto, low, medium, high
  ok  answers            begin with "<|start|>assistant", end with "<|return|>"
  ok  response template  harmony, built in
  ok  thoughts           read as written
  ok  tool calls         read as written
  ok  streamed text      Japanese, emoji and spaces as in the whole text (Qwen2Tokenizer)
  ok  settings           none of the model's own; aiochatstream's apply
  ok  packages           nothing to install
Nothing is broken.
""",
    save_python: """\
tiny-python
  ok    weights            333 kB
  ok    device             cpu, float32: S tokens/s for one answer (a typical answer: T s in float32, T s in bfloat16)
  ok    batching           answers are decoded together; serve runs 8 at a time
  ok    context            512 tokens, 512 bytes each; room for N answers of this length
  ok    chat template      system prompt, no tools, no thinking switch
  ok    answers            begin with "[assistant]", end with "</s>"
  ok    response template  qwen3, built in
  ok    thoughts           not in the chat template
  ok    tool calls         not in the chat template
  note  streamed text      as in the whole text; the tokenizer cannot write "絵文字 👩‍👩‍👧 🇯🇵 🙂" (SpaceMovingTokenizer)
  ok    settings           none of the model's own; aiochatstream's apply
  ok    packages           nothing to install
Nothing is broken.
""",
    save_base: """\
tiny-base
  ok    weights        333 kB
  ok    device         cpu, float32: S tokens/s for one answer (a typical answer: T s in float32, T s in bfloat16)
  ok    batching       answers are decoded together; serve runs 8 at a time
  ok    context        512 tokens, 512 bytes each; room for N answers of this length
  note  chat template  none: only /v1/completions is available; choose a format with REMEDY
  ok    streamed text  Japanese, emoji and spaces as in the whole text (Qwen2Tokenizer)
  ok    settings       none of the model's own; aiochatstream's apply
  ok    packages       nothing to install
Nothing is broken.
""",
}

SMALL_MODEL = """\
{name}
  正常  重み                  量子化を解除: ディスク上 X MB、メモリー上 Y MB
  正常  デバイス              cpu、float32: 1 件の応答で S トークン/秒（標準的な応答: float32 T 秒、bfloat16 T 秒）
  正常  バッチ処理            応答をまとめて生成します。serve では同時に 8 件です
  正常  コンテキスト          512 トークン、1 トークンあたり 46.1 kB。この長さの応答 N 件分のメモリーがあります
  正常  チャットテンプレート  システムプロンプトあり、ツールなし、思考の切り替えなし
  正常  応答                  "<|im_start|>assistant\\n" で始まり、"<|im_end|>" で終わります
  正常  応答テンプレート      なし: 思考もテキストとして扱います
  正常  思考                  チャットテンプレートにありません
  正常  ツール呼び出し        チャットテンプレートにありません
  正常  逐次テキスト          日本語、絵文字、空白が全体のテキストと一致します（{tokenizer}）
  正常  モデルの設定          モデル自身の設定はなく、aiochatstream の値を使います
  正常  パッケージ            追加でインストールするものはありません
異常はありません。
"""


@pytest.mark.slow  # the engine compiles its attention
@pytest.mark.parametrize("save", SCREENS, ids=lambda save: save.__name__)
def test_the_screen_of_a_tiny_model(save: Callable[[Path], str], tmp_path: Path, printed: Callable[[], str]) -> None:
    assert run(save(tmp_path), "--trust-remote-code") == 0
    assert normalize(printed()) == SCREENS[save]


def test_the_screen_of_the_small_model_in_japanese(
    model_folder: str, tokenizer: Any, printed: Callable[[], str]
) -> None:
    assert run("--context-len", "512", "--locale", "ja") == 0
    name, kind = Path(model_folder).name, type(tokenizer).__name__
    assert normalize(printed()) == SMALL_MODEL.format(name=name, tokenizer=kind)


def test_a_format_replaces_a_missing_template(tmp_path: Path, printed: Callable[[], str]) -> None:
    model = save_base(tmp_path)
    assert run(model, "--prompt", "chatml") == 0
    assert re.search(r"ok +chat template +\w+, a preset of prompts", printed())
    (tmp_path / "plain.jinja").write_text(PLAIN)
    assert run(model, "--chat-template", str(tmp_path / "plain.jinja")) == 0
    assert 'begin with "[assistant]"' in printed()


def test_json_has_the_same_results(tmp_path: Path, printed: Callable[[], str]) -> None:
    assert run(save_base(tmp_path), "--json") == 0
    report = json.loads(printed())
    assert (report["model"], report["status"]) == ("tiny-base", "warning")
    results = {result["name"]: result for result in report["checks"]}
    assert list(results) == [
        "weights",
        "device",
        "batching",
        "context",
        "template",
        "streaming",
        "settings",
        "packages",
    ]
    assert results["context"]["values"]["context"] == 512
    assert results["device"]["values"]["speed"] > 0
    assert results["template"]["status"] == "warning"


def test_a_broken_model_has_exit_code_1(tmp_path: Path, printed: Callable[[], str]) -> None:
    model = save(tmp_path / "harmony-marks", byte_tokenizer((*QWEN_MARKS, *SPECIAL)), QWEN, ["<|end|>"])
    assert run(model) == 1
    screen = printed()
    assert re.search(
        r'BROKEN +answers .*may not stop: "<\|im_end\|>" is not an end-of-sequence token of the model', screen
    )
    assert re.search(r"BROKEN +thoughts +not read as the chat template writes them: ", screen)
    assert screen.endswith("Broken: answers, thoughts, tool calls.\n")


def test_a_model_that_cannot_be_loaded_is_broken(tmp_path: Path, printed: Callable[[], str]) -> None:
    edit_json(tmp_path / "config.json", model_type="qwen2", quantization_config={"quant_method": "vptq"})
    tokenizer = byte_tokenizer(QWEN_MARKS)
    tokenizer.save_pretrained(tmp_path)
    assert run(str(tmp_path)) == 1
    assert re.search(r"BROKEN  loading  .* is quantised \(vptq\), .* pip install vptq\nBroken: loading\.\n", printed())


def test_a_missing_folder_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "./missing-model"]) == 2
    assert capsys.readouterr().err == "aiochatstream: There is no folder missing-model.\n"


def test_columns_are_aligned_in_both_languages() -> None:
    results = [CheckResult("weights", "ok", "a"), CheckResult("template", "broken", "b")]
    assert check.screen("m", results, CHECK_TEXTS["en"]).splitlines() == [
        "m",
        "  ok      weights        a",
        "  BROKEN  chat template  b",
        "Broken: chat template.",
    ]
    assert check.screen("m", results, CHECK_TEXTS["ja"]).splitlines() == [
        "m",
        "  正常  重み                  a",
        "  異常  チャットテンプレート  b",
        "異常: チャットテンプレート。",
    ]
