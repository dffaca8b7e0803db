"""Token ids of texts and chats, and texts of token ids, as in vLLM's API."""

from __future__ import annotations

from aiohttp import web

from aiochatstream.params import ParamOverrides
from aiochatstream.prompts import TextInput
from aiochatstream.web.json import json_response
from aiochatstream.web.openai.chat import chat_input, template_tools
from aiochatstream.web.openai.endpoint_context import EndpointContext
from aiochatstream.web.openai.errors import openai_endpoint
from aiochatstream.web.openai.response_models import DetokenizeResponse, TokenizeResponse
from aiochatstream.web.openai.tokenization_requests import DetokenizeRequest, TokenizeRequest
from aiochatstream.web.server import Server


@openai_endpoint
async def tokenize(server: Server, request: web.Request, context: EndpointContext) -> web.StreamResponse:
    """``POST /tokenize``: the token ids of a text, or of a chat with its template."""
    received = await context.receive(server, request, needs_slot=False)
    body, server = received.parse(TokenizeRequest), received.server
    if body.messages is None:
        model_input = TextInput([body.prompt or ""])
        tokens = await server.tokenize(model_input, ParamOverrides())
    else:
        chat = chat_input(body.messages, template_tools(body.tools), continues=bool(body.continue_final_message))
        tokens = await server.tokenize(chat, ParamOverrides(chat_template_kwargs=body.chat_template_kwargs))
    response: TokenizeResponse = {"count": len(tokens), "max_model_len": server.context_len, "tokens": tokens}
    if body.return_token_strs:
        response["token_strs"] = server.engine.tokenizer.convert_ids_to_tokens(tokens)
    return json_response(response)


@openai_endpoint
async def detokenize(server: Server, request: web.Request, context: EndpointContext) -> web.StreamResponse:
    """``POST /detokenize``: the text of token ids, with special tokens."""
    received = await context.receive(server, request, needs_slot=False)
    text = await received.server.detokenize(received.parse(DetokenizeRequest).tokens)
    response: DetokenizeResponse = {"prompt": text}
    return json_response(response)
