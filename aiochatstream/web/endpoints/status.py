"""Status of the server: probes, load, memory, metrics, and the prompt of an answer."""

from __future__ import annotations

from urllib.parse import quote

import psutil
from aiohttp import web

from aiochatstream.errors import Forbidden
from aiochatstream.runtime.metrics import CONTENT_TYPE
from aiochatstream.web.errors import json_endpoint, chatstream_endpoint
from aiochatstream.web.json import COMMON_HEADERS, json_response
from aiochatstream.web.request_models import ConversationRef
from aiochatstream.web.request_reading import read_query
from aiochatstream.web.server import Server

GIB = 1 << 30


@chatstream_endpoint
async def get_prompt(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /get_prompt``: what the model was told for the newest answer of a conversation, URL-quoted."""
    asked = read_query(request, ConversationRef)
    user = await server.user_session(request)
    turn = server.running_turn(user, asked.conversation)
    if turn is not None and turn.base is not None:
        told, message = turn.base, turn.user_text
    else:
        conversation = await user.load(asked.conversation)
        if not conversation.turns:
            return json_response({"success": False, "message": "no prompt", "prompt": None})
        told, message = conversation.without_last(), conversation.turns[-1].user
    prompt = quote(await server.prompt_text(told, message), errors="replace")
    return json_response({"success": True, "message": "success", "prompt": prompt})


@chatstream_endpoint
async def get_load(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /get_load``: slots and queue, now; and where the user's own requests stand in it, by conversation."""
    user = await server.user_session(request)
    admission = server.admission
    worker = {
        "name": server.name,
        "processing": admission.running,
        "waiting": admission.waiting,
        "_num_of_next_queue": admission.running,
        "_num_of_request_queue": admission.waiting,
        "max_processing": admission.slots,
        "max_waiting": admission.queue_size,
    }
    positions = server.queue_positions(user)
    return json_response(
        {"success": True, "message": "success", "chatstream_workers": [worker], "queue_positions": positions}
    )


@chatstream_endpoint
async def get_resource_usage(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /get_resource_usage``: memory of this machine and of its GPUs, now, in GiB."""
    memory = psutil.virtual_memory()
    gpus = [
        {"index": index, "total_memory": _gib(total), "used_memory": _gib(used)}
        for index, total, used in server.engine.gpu_memory()[: server.num_gpus]
    ]
    usage = {
        "num_gpus": len(gpus),
        "gpus": gpus,
        "cpu": {"total_memory": _gib(memory.total), "used_memory": _gib(memory.total - memory.available)},
        "name": server.name,
    }
    return json_response({"success": True, "message": "success", "memory_usage": [usage]})


def _gib(count: int) -> float:
    return round(count / GIB, 2)


@json_endpoint
async def healthz(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /healthz``: the process is alive."""
    return json_response({"status": "alive"})


@json_endpoint
async def readyz(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /readyz``: ready for requests; 503 while loading or draining. ``GET /health`` is the same."""
    server.check_ready()
    return json_response({"status": "ready"})


@json_endpoint
async def metrics(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /metrics``: Prometheus' text format."""
    if not server.allow_metrics(request):
        raise Forbidden("/metrics is not for this client.")
    return web.Response(body=server.metrics.render(), headers={"Content-Type": CONTENT_TYPE, **COMMON_HEADERS})
