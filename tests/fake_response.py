"""The response of a :mod:`tests.fake_upstream` to one request: streamed or whole, with a fault or without."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web

from tests import fake_answers
from tests.fake_answers import FIRST_ANSWER_ID, Start, answer_words, rest_of_answer
from tests.fake_faults import REFUSALS, Broken, Fault, Refused, error

if TYPE_CHECKING:
    from tests.fake_upstream import FakeUpstream

CONTINUES = {"vllm", "sglang", "aiochatstream"}
"""Values of ``owned_by`` with ``continue_final_message``. llama.cpp continues any last message of the assistant."""

TELLS_IDS = {"vllm", "aiochatstream"}
"""Values of ``owned_by`` with ``return_token_ids``."""


class Piece(NamedTuple):
    """A token of an answer: its fields in a chat delta, its text and its id."""

    delta: dict[str, Any]
    text: str
    token_id: int


class Answer:
    """The response to one request."""

    def __init__(self, upstream: FakeUpstream, request: web.Request, body: dict[str, Any], fault: Fault | None) -> None:
        self.upstream, self.request, self.body, self.fault = upstream, request, body, fault
        self.settings = upstream.settings
        self.chat = request.path.endswith("/chat/completions")
        self.streams = bool(body.get("stream"))
        self.tells_ids = bool(body.get("return_token_ids")) and self.settings.owned_by in TELLS_IDS
        self.response: web.StreamResponse = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        kind = "chat.completion" if self.chat else "text_completion"
        self.head = {
            "id": "cmpl-1",
            "object": f"{kind}.chunk" if self.chat and self.streams else kind,
            "created": 0,
            "model": self.settings.model,
        }

    async def send(self) -> web.StreamResponse:
        if self.fault is not None and self.fault.kind in REFUSALS:
            raise Refused(self.fault.kind)
        self.start = self._read_prompt()
        limit = self.body.get("max_completion_tokens", self.body.get("max_tokens"))
        self._check_length(limit)
        self.cached = self.upstream.remember(self.start.ids)
        choices = [self._pieces(choice, limit) for choice in range(self.body.get("n") or 1)]
        await self._break("request")
        if self.streams:
            await self.response.prepare(self.request)
            await self._break("headers")
            if self.chat:
                for index in range(len(choices)):
                    await self._send_chunk(index, {"role": "assistant", "content": ""}, first=True)
                await self._break("role")
        due = time.monotonic() + self.settings.first_token_s
        for k in range(max(len(pieces) for pieces, _ in choices)):
            await self._break("words", k)
            await self._wait(due - time.monotonic())
            due += self.settings.token_s
            for index, (pieces, _) in enumerate(choices):
                if k < len(pieces):
                    self.upstream.words_sent += 1
                    if self.streams:
                        await self._send_piece(index, pieces[k], first=k == 0)
        await self._break("words", max(len(pieces) for pieces, _ in choices))
        for pieces, _ in choices[:1]:
            text = self.start.text + "".join(piece.text for piece in pieces)
            self.upstream.remember([*self.start.ids, *fake_answers.message_ids({"role": "assistant", "content": text})])
        return await self._finish(choices) if self.streams else self._whole(choices)

    def _read_prompt(self) -> Start:
        """Return the prompt, split from the beginning of its answer."""
        body, owner = self.body, self.settings.owned_by
        if self.chat:
            messages = body["messages"]
            continues = bool(body.get("continue_final_message")) and owner in CONTINUES
            if continues and owner == "vllm" and body.get("add_generation_prompt", True):
                raise Refused("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
            continues = continues or (owner == "llamacpp" and messages[-1]["role"] == "assistant")
            return fake_answers.split_messages(messages, continues)
        prompt = body["prompt"]
        return fake_answers.split_text(prompt) if isinstance(prompt, str) else fake_answers.split_ids(prompt)

    def _check_length(self, limit: int | None) -> None:
        if len(self.start.ids) + self.start.words + (limit or 1) > self.settings.max_model_len:
            name = f"too_long_{self.settings.owned_by}"
            raise Refused(name if name in REFUSALS else "too_long_openai")

    def _pieces(self, choice: int, limit: int | None) -> tuple[list[Piece], str]:
        """Return the tokens of a choice, and its finish reason."""
        pieces = [] if self.start.words or not self.chat else self._reasoning(choice)
        reason = "stop"
        if self.settings.tool_calls and self.body.get("tools") and self.body.get("tool_choice") != "none":
            pieces += self._tool_calls()
            reason = "tool_calls"
        else:
            words = answer_words(self.start.ids, self.settings.words, choice)
            if self.body.get("response_format", {}).get("type", "text") != "text":
                words = ['{"answer": "' + words[0], *words[1:-1], words[-1] + '"}']
            rest = rest_of_answer(words, self.start)
            if rest is None:
                self.upstream.misfits += 1
                rest = rest_of_answer(words, self.start._replace(text="")) or []
            pieces += [Piece({"content": text}, text, token_id) for text, token_id in self._until_stop(rest)]
        return (pieces[:limit], "length") if limit is not None and len(pieces) > limit else (pieces, reason)

    def _until_stop(self, rest: list[tuple[str, int]]) -> list[tuple[str, int]]:
        stop = self.body.get("stop") or []
        text = "".join(word for word, _ in rest)
        ends = [text.find(string) for string in ([stop] if isinstance(stop, str) else stop)]
        length = min((end for end in ends if end >= 0), default=len(text))
        shorter = []
        for word, token_id in rest:
            if length > 0:
                shorter.append((word[:length], token_id))
            length -= len(word)
        return shorter

    def _reasoning(self, choice: int) -> list[Piece]:
        words = answer_words([*self.start.ids, -1], self.settings.reasoning, choice)
        return [Piece({self.settings.reasoning_field: word}, "", FIRST_ANSWER_ID - 1) for word in words]

    def _tool_calls(self) -> list[Piece]:
        pieces = []
        for index, call in enumerate(self.settings.tool_calls):
            head = {"id": f"call_{index}", "type": "function", "function": {"name": call["name"], "arguments": ""}}
            half = len(call["arguments"]) // 2
            halves = (call["arguments"][:half], call["arguments"][half:])
            parts: list[dict[str, Any]] = [head, *({"function": {"arguments": part}} for part in halves)]
            pieces += [Piece({"tool_calls": [{"index": index, **part}]}, "", 1) for part in parts]
        return pieces

    async def _send_piece(self, index: int, piece: Piece, first: bool) -> None:
        logprobs = self._logprobs([piece]) if self.body.get("logprobs") else None
        await self._send_chunk(index, piece.delta, piece=piece, logprobs=logprobs, first=first and not self.chat)

    async def _send_chunk(
        self, index: int, delta: dict[str, Any], *, piece: Piece | None = None, logprobs: object = None,
        finish_reason: str | None = None, first: bool = False,
    ) -> None:  # fmt: skip
        choice: dict[str, Any] = {"index": index}
        choice |= {"delta": delta} if self.chat else {"text": piece.text if piece else ""}
        choice |= {"logprobs": logprobs, "finish_reason": finish_reason}
        chunk = self.head | {"choices": [choice]}
        if self.tells_ids:
            choice["token_ids"] = [piece.token_id] if piece else []
            if first:
                (chunk if self.chat else choice)["prompt_token_ids"] = self.start.ids
        await self._write(chunk)

    async def _finish(self, choices: list[tuple[list[Piece], str]]) -> web.StreamResponse:
        for index, (_, reason) in enumerate(choices):
            await self._send_chunk(index, {}, finish_reason=reason)
        await self._break("finish")
        if (self.body.get("stream_options") or {}).get("include_usage"):
            await self._write(self.head | {"choices": [], "usage": self._usage(choices)})
        await self._write_bytes(b"data: [DONE]\n\n")
        await self.response.write_eof()
        return self.response

    def _whole(self, choices: list[tuple[list[Piece], str]]) -> web.Response:
        full = []
        for index, (pieces, reason) in enumerate(choices):
            text = "".join(piece.text for piece in pieces)
            choice: dict[str, Any] = {"index": index, "finish_reason": reason, "stop_reason": None}
            choice["logprobs"] = self._logprobs(pieces) if self.body.get("logprobs") else None
            if self.chat:
                reasoning = "".join(piece.delta.get(self.settings.reasoning_field, "") for piece in pieces)
                calls = self._tool_call_objects() if reason == "tool_calls" else []
                choice["message"] = {"role": "assistant", "content": text or None, "tool_calls": calls}
                choice["message"][self.settings.reasoning_field] = reasoning or None
            else:
                choice["text"] = text
            if self.tells_ids:
                choice["token_ids"] = [piece.token_id for piece in pieces]
            full.append(choice)
        body = self.head | {"choices": full, "usage": self._usage(choices)}
        if self.tells_ids:
            (body if self.chat else full[0])["prompt_token_ids"] = self.start.ids
        return web.json_response(body)

    def _tool_call_objects(self) -> list[dict[str, Any]]:
        calls = enumerate(self.settings.tool_calls)
        return [{"id": f"call_{index}", "type": "function", "function": call} for index, call in calls]

    def _usage(self, choices: list[tuple[list[Piece], str]]) -> dict[str, Any]:
        prompt, completion = len(self.start.ids) + self.start.words, sum(len(pieces) for pieces, _ in choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }

    def _logprobs(self, pieces: list[Piece]) -> dict[str, Any]:
        if self.chat:
            fields = {"logprob": -0.5, "top_logprobs": []}
            return {"content": [{"token": p.text, "bytes": list(p.text.encode()), **fields} for p in pieces if p.text]}
        texts = [piece.text for piece in pieces]
        return {
            "tokens": texts,
            "token_logprobs": [-0.5] * len(texts),
            "top_logprobs": [{text: -0.5} for text in texts],
        }

    async def _break(self, stage: str, words: int = 0) -> None:
        """Do what the fault demands at this moment."""
        fault = self.fault
        if fault is None or fault.stage != stage or (stage == "words" and fault.words != words):
            return
        if fault.kind == "silence":
            await self._wait(None)
        elif fault.kind == "broken_json":
            await self._write_bytes(b'data: {"choices": [{"delta": {"cont\n\n')
        elif fault.kind == "error_event":
            await self._write(error("EngineCore died at /secret/path.", "InternalServerError", 500))
            await self._end()
        elif fault.kind == "finish":
            if fault.finish_reason is not None:
                await self._send_chunk(0, {}, finish_reason=fault.finish_reason)
            await self._write_bytes(b"data: [DONE]\n\n")
            await self._end()
        elif fault.kind == "end":
            await self._end()
        elif self.request.transport is not None:
            reset_socket = self.request.transport.get_extra_info("socket")
            reset_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.request.transport.abort()
            raise Broken

    async def _end(self) -> None:
        await self.response.write_eof()
        raise Broken

    async def _wait(self, seconds: float | None) -> None:
        """Wait, permanently without ``seconds``, and send heartbeats."""
        end = None if seconds is None else time.monotonic() + seconds
        beat = self.settings.heartbeat_s if self.response.prepared else None
        while end is None or time.monotonic() < end:
            left = 3600.0 if end is None else end - time.monotonic()
            await asyncio.sleep(left if beat is None else min(left, beat))
            if beat is not None and (end is None or time.monotonic() < end):
                await self._write_bytes(b": keep-alive\n\n")

    async def _write(self, data: dict[str, Any]) -> None:
        await self._write_bytes(b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n")

    async def _write_bytes(self, data: bytes) -> None:
        size = self.settings.split_bytes or len(data)
        for start in range(0, len(data), size):
            await self.response.write(data[start : start + size])
            if size < len(data):
                await asyncio.sleep(0)
