"""The command ``aiochatstream check``."""

from __future__ import annotations

import argparse
import json
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

from aiochatstream import terminal
from aiochatstream.cli.check_texts import CHECK_TEXTS, CheckTexts
from aiochatstream.cli.model_checks import CheckResult, LoadedModel, run_checks
from aiochatstream.console import model_options, prompt_options
from aiochatstream.progress import show_progress
from aiochatstream.texts import texts_for

FAILED = 1

DESCRIPTION = """\
Load a model and print its capabilities and problems, one per line. The exit code is 1 if something is broken.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to ``parser``."""
    parser.description = DESCRIPTION
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="HuggingFace id, folder or .gguf file; without it, the small model")
    model_options.add_arguments(parser)
    prompt_options.add_arguments(parser)
    add("--context-len", type=int, metavar="N", help="tokens of prompt and answer (as many as model and memory allow)")
    add("--json", action="store_true", help="print JSON")


def main(options: argparse.Namespace) -> int:
    """Run the command and return its exit code. Raise OSError, ValueError and MissingExtra for wrong usage."""
    name, results = _check(options)
    if options.json:
        sys.stdout.write(json.dumps(_report(name, results), ensure_ascii=False, indent=2) + "\n")
    else:
        terminal.write(screen(name, results, CHECK_TEXTS[options.locale]), sys.stdout)
    return FAILED if any(result.status == "broken" for result in results) else 0


def screen(name: str, results: Sequence[CheckResult], texts: CheckTexts) -> str:
    """Return the results as text.

    :param name: name of the model.
    """
    rows = [(getattr(texts, result.status), getattr(texts, result.name), result.text) for result in results]
    widths = [max(_width(row[column]) for row in rows) for column in (0, 1)]
    lines = [name]
    for status, label, text in rows:
        lines.append(f"  {_padded(status, widths[0])}  {_padded(label, widths[1])}  {text}")
    broken = [getattr(texts, result.name) for result in results if result.status == "broken"]
    return "\n".join([*lines, texts.some_broken.format(names=", ".join(broken)) if broken else texts.all_ok])


def _check(options: argparse.Namespace) -> tuple[str, list[CheckResult]]:
    """Return the name of the model and the results of its checks; a single one if it cannot be loaded."""
    with terminal.default_ctrl_c():
        from aiochatstream.engines.transformers import TransformersEngine, loading  # a slow import

    texts = texts_for(options.locale)
    prompt_options.check_combination(options.prompt, options.chat_template)
    prompt_class_of = prompt_options.prompt_class_of(options.prompt, completes=True)
    load_options = model_options.load_options(vars(options))
    load_model, load_tokenizer = loading.loaders(options.model, load_options)
    load_tokenizer = prompt_options.with_chat_template(load_tokenizer, options.chat_template)
    engine = TransformersEngine(load_model, load_tokenizer, quantize=load_options.quantize)
    name = options.model or texts.small_model
    try:
        with show_progress(texts.loading_name.format(name=name)):
            engine.load(1, options.context_len)
        prompt_class = prompt_class_of(engine.tokenizer)
        check_texts = CHECK_TEXTS[options.locale]
        model = LoadedModel(engine, options.model, prompt_class, check_texts, texts, options.context_len)
        return engine.describe()["model"], run_checks(model)
    except Exception as error:  # noqa: BLE001 - loading a model may raise any error
        return name, [CheckResult("loading", "broken", str(error) or repr(error))]
    finally:
        engine.close()


def _report(name: str, results: Sequence[CheckResult]) -> dict[str, Any]:
    """Return the results as JSON."""
    statuses = {result.status for result in results}
    return {
        "model": name,
        "status": next(status for status in ("broken", "warning", "ok") if status in statuses),
        "checks": [
            {"name": result.name, "status": result.status, "text": result.text, "values": dict(result.values)}
            for result in results
        ],
    }


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Return the columns of ``text`` in a terminal; Japanese characters have two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
