"""``python bench/quality.py``: compare the next-token distributions of a model in bfloat16 and int8 with float32."""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from common import FAILED, OK, ROOT, integer, new_parser, progress, run_script, table, write_json
from transformers import AutoModelForCausalLM, AutoTokenizer

from aiochatstream.engines.transformers.cpu.int8_linear import quantize_linears
from aiochatstream.engines.transformers.loading import folder, locate

PRECISIONS = ("bfloat16", "int8")
QUESTIONS = ("What is the capital of France?", "Name three colours of the rainbow.", "日本の首都はどこですか。")

HELP = """\
The model reads English prose, a licence, Python code and Japanese prose, --tokens of each, in float32 and in each
precision. Figures over all tokens:
  KL mean, p99  Kullback-Leibler divergence of the next token's distribution from that of float32, in nats
  same top      share of tokens after which the most likely token is the same
  nll           mean negative log likelihood of the texts, in nats per token
Greedy answers to three questions follow, side by side.

exit codes: 0 measured; 1 a precision is not supported here; 2 wrong use, or the model is missing; 130 Ctrl-C
"""


@dataclass(frozen=True)
class Quality:
    """Figures of one precision; None for those that compare it with itself."""

    precision: str
    kl_mean: float | None
    kl_p99: float | None
    same_top: float | None
    nll: float
    answers: list[str]


def texts() -> dict[str, Any]:
    """Return the texts, which packages of the environment and this project contain."""
    return {
        "prose": importlib.metadata.metadata("aiohttp").json["description"],
        "licence": (ROOT / "LICENSE").read_text(encoding="utf-8"),
        "Python": inspect.getsource(argparse),
        "Japanese": (ROOT / "docs" / "ja" / "engines.md").read_text(encoding="utf-8"),
    }


def load(source: str, precision: str) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    if precision == "bfloat16":
        model = model.to(torch.bfloat16)
    elif precision == "int8":
        quantize_linears(model)
    return model.eval()


@torch.inference_mode()
def distributions(model: Any, ids: list[list[int]]) -> Iterator[torch.Tensor]:
    """Yield the log probabilities [tokens, vocabulary] after each token of each text."""
    for text in ids:
        yield model(torch.tensor([text])).logits[0].float().log_softmax(-1)


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, question: str, max_tokens: int) -> str:
    """Return the greedy answer, or the continuation of the question if there is no chat template."""
    if tokenizer.chat_template is None:
        inputs = tokenizer(question, return_tensors="pt")
    else:
        messages = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    output = model.generate(**inputs, do_sample=False, max_new_tokens=max_tokens)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def compare(source: str, precisions: tuple[str, ...], tokens: int, max_tokens: int) -> list[Quality]:
    """Return the figures of float32 and of each precision."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = [tokenizer(text)["input_ids"][:tokens] for text in texts().values()]
    expected: list[torch.Tensor] = []
    results = []
    for precision in ("float32", *precisions):
        progress(precision)
        model = load(source, precision)
        divergences, tops, likelihoods = [], [], []
        for at, (text, actual) in enumerate(zip(ids, distributions(model, ids), strict=True)):
            likelihoods.append(-actual[:-1].gather(-1, torch.tensor(text[1:])[:, None]))
            if precision == "float32":
                expected.append(actual)
                continue
            divergences.append((expected[at].exp() * (expected[at] - actual)).sum(-1))
            tops.append((expected[at].argmax(-1) == actual.argmax(-1)).float())
        kl = torch.cat(divergences) if divergences else None
        results.append(
            Quality(
                precision,
                None if kl is None else float(kl.mean()),
                None if kl is None else float(kl.quantile(0.99)),
                float(torch.cat(tops).mean()) if tops else None,
                float(torch.cat(likelihoods).mean()),
                [answer(model, tokenizer, question, max_tokens) for question in QUESTIONS],
            )
        )
    return results


def rows(results: list[Quality]) -> list[list[str]]:
    """Return the lines of the table of figures."""
    return [
        [result.precision]
        + [
            "" if value is None else f"{value:.{digits}f}"
            for value, digits in ((result.kl_mean, 4), (result.kl_p99, 3), (result.same_top, 3), (result.nll, 3))
        ]
        for result in results
    ]


def main() -> int:
    parser = new_parser("Compare the distributions of a model in bfloat16 and int8 with float32.", HELP)
    parser.add_argument("--model", metavar="MODEL", help="HuggingFace id, folder or .gguf file")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=[*PRECISIONS], help="default: all")
    parser.add_argument("--tokens", type=integer(16, 8192), default=1024, help="tokens of each text (1024)")
    parser.add_argument("--max-tokens", type=integer(1, 512), default=32, help="maximum tokens of an answer (32)")
    options = parser.parse_args()
    try:
        source = folder(locate(options.model))
    except FileNotFoundError as error:
        progress(str(error))
        return 2
    try:
        results = compare(source, tuple(options.precisions), options.tokens, options.max_tokens)
    except (OSError, RuntimeError, ValueError) as error:
        progress(f"quality.py: {error}")
        return FAILED
    print(table(["precision", "KL mean", "KL p99", "same top", "nll"], rows(results)))
    for at, question in enumerate(QUESTIONS):
        print(f"\n{question}")
        for result in results:
            print(f"  {result.precision}: {' '.join(result.answers[at].split())}")
    content = {"questions": QUESTIONS, "results": [asdict(result) for result in results]}
    write_json(options, "quality", content, interrupted=False)
    return OK


if __name__ == "__main__":
    run_script(main)
