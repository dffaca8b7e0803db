"""Tests for the dialects of servers."""

from __future__ import annotations

from typing import Any

import pytest

from aiochatstream.engines.upstream.dialects import PLAIN, Refusal, read_error_event, read_models, read_refusal
from tests.fake_faults import REFUSALS


def models(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [{"object": "model", **entry} for entry in entries]}


@pytest.mark.parametrize(
    ("entry", "dialect", "context_len"),
    [
        ({"owned_by": "vllm", "max_model_len": 4096, "root": "m"}, "vllm", 4096),
        ({"owned_by": "sglang", "max_model_len": 8192}, "sglang", 8192),
        ({"owned_by": "llamacpp", "meta": {"n_ctx_train": 131072}}, "llama.cpp", None),
        ({"owned_by": "llamacpp", "meta": {"n_ctx": 2048, "n_ctx_train": 131072}}, "llama.cpp", 2048),
        ({"owned_by": "aiochatstream", "max_model_len": 512}, "aiochatstream", 512),
        ({"owned_by": "system"}, "openai", None),
        ({"owned_by": "somebody", "max_model_len": "long"}, "openai-compatible", None),
        ({"owned_by": ["vllm"]}, "openai-compatible", None),
        ({}, "openai-compatible", None),
    ],
)
def test_the_list_of_models_shows_the_dialect(entry: dict[str, Any], dialect: str, context_len: int | None) -> None:
    facts = read_models(models({"id": "m", **entry}))
    assert (facts.model, facts.dialect.name, facts.context_len) == ("m", dialect, context_len)


def test_adapters_of_the_only_model_are_not_chosen() -> None:
    body = models({"id": "lora", "parent": "base"}, {"id": "base", "parent": None})
    assert read_models(body).model == "base"
    assert read_models(body, "lora").model == "lora"


@pytest.mark.parametrize(
    ("body", "name", "message"),
    [
        ([], None, "must return a list of models"),
        ({"data": "m"}, None, "must return a list of models"),
        ({"data": [None, {"id": 3}]}, None, "must return a list of models"),
        (models({"id": "a"}), "b", "model: the server does not list 'b'"),
        (models({"id": "a"}, {"id": "b"}), None, "model: must name one of the server's 2 models"),
    ],
)
def test_a_server_without_the_model_is_refused(body: Any, name: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_models(body, name)


EXPECTED: dict[str, Refusal] = {
    "too_long_vllm": "too_long",
    "too_long_sglang": "too_long",
    "too_long_openai": "too_long",
    "too_long_llamacpp": "too_long",
    "bad_request": "request",
    "unauthorized": "configuration",
    "no_model": "configuration",
    "rate_limit": "busy",
    "busy": "busy",
    "busy_retry_after": "busy",
    "draining": "draining",
    "internal": "error",
    "bad_gateway": "error",
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_each_error_response_has_a_meaning(kind: str) -> None:
    status, body, _ = REFUSALS[kind]
    assert read_refusal(status, body) == EXPECTED[kind]


@pytest.mark.parametrize(
    ("status", "body", "refusal"),
    [
        (503, {"error": {"code": "starting"}}, "down"),
        (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, "down"),
        (503, None, "busy"),
        (500, "text", "error"),
        (508, {"error": {"code": "loop_detected"}}, "loop"),
        (400, {"error": "stop: string too long"}, "request"),
        (400, {"error": {"message": "The prompt is too long: this model's context has 9 tokens."}}, "too_long"),
        (400, None, "request"),
        (418, {"error": {"code": ["x"]}}, "request"),
    ],
)
def test_other_error_responses(status: int, body: Any, refusal: Refusal) -> None:
    assert read_refusal(status, body) == refusal


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        ({"message": "EngineCore died", "type": "InternalServerError", "code": 500}, "error"),
        ({"code": "context_length_exceeded"}, "too_long"),
        ({"code": "too_many_requests"}, "busy"),
        ({"code": "draining"}, "draining"),
        ({"code": "loop_detected"}, "loop"),
        ({"code": 400, "message": "bad"}, "request"),
        ({"code": None}, "error"),
        ("text", "error"),
    ],
)
def test_errors_in_streams(error: Any, refusal: Refusal) -> None:
    assert read_error_event({"error": error}) == refusal


def test_a_plain_server_gets_no_field_of_its_own() -> None:
    assert (PLAIN.continuing, PLAIN.thinking, PLAIN.token_ids, PLAIN.cache_salt) == (None, {}, {}, None)
