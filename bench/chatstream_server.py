"""A server with chatstream 0.3.0, for a model or for mock answers. Runs in chatstream's own environment."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import uvicorn
from chatstream import ChatPromptTogetherRedPajamaINCITEChat, ChatStream
from fastapi import FastAPI, Request
from starlette.responses import Response
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast


def load_model(folder: Path) -> Any:
    """Load a model saved by transformers 5 with transformers 4.39, which reads two settings elsewhere."""
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = AutoConfig.from_pretrained(folder)
    config.rope_theta = saved.get("rope_parameters", saved)["rope_theta"]
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, torch_dtype=torch.bfloat16)
    return model.eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer saved by transformers 5, whose merges are pairs; tokenizers 0.15 requires strings."""
    saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    saved["model"]["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in saved["model"]["merges"]]
    special = {name: config[name] for name in ("bos_token", "eos_token", "pad_token", "unk_token") if name in config}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(saved)), **special)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=2, help="concurrent answers (chatstream's default: 2)")
    parser.add_argument("--queue", type=int, default=5, help="waiting requests (chatstream's default: 5)")
    parser.add_argument("--max-tokens", type=int, default=64)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, metavar="FOLDER")
    source.add_argument("--mock", action="store_true", help="echo the message word by word")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    backend: dict[str, Any] = (
        {
            "use_mock_response": True,
            "mock_params": {"type": "echo", "initial_wait_sec": 0, "time_per_token_sec": 0},
        }
        if options.mock
        else {"model": load_model(options.model), "tokenizer": load_tokenizer(options.model)}
    )
    chat_stream = ChatStream(
        **backend,
        device=torch.device("cpu"),
        num_gpus=0,
        num_of_concurrent_executions=options.slots,
        max_queue_size=options.queue,
        max_new_tokens=options.max_tokens,
        temperature=0.0,
        chat_prompt_clazz=ChatPromptTogetherRedPajamaINCITEChat,
    )
    app = FastAPI()
    chat_stream.append_middlewares(app)

    @app.post("/chat_stream")
    async def answer(request: Request) -> Response:
        return await chat_stream.handle_chat_stream_request(request)

    @app.on_event("startup")
    async def start() -> None:
        await chat_stream.start_queue_worker()

    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
