"""Endpoints for the status of the server: probes, load, memory, metrics, and the prompt of an answer."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import psutil
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from aiochatstream.errors import ChatStreamError, Forbidden
from aiochatstream.runtime.metrics import CONTENT_TYPE
from aiochatstream.web.auth.origins import SAFE_METHODS
from aiochatstream.web.errors import chatstream_endpoint, error_response, json_endpoint
from aiochatstream.web.json import COMMON_HEADERS, json_response
from aiochatstream.web.request_models import ConversationRef
from aiochatstream.web.request_reading import read_query
from aiochatstream.web.server import Server

GIB = 1 << 30


@chatstream_endpoint
async def get_prompt(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /get_prompt``: the prompt of the newest answer of a conversation, URL-quoted."""
    query = read_query(request, ConversationRef)
    user = await server.user_session(request)
    turn = server.running_turn(user, query.conversation)
    if turn is not None and turn.base is not None:
        history, message = turn.base, turn.user_text
    else:
        conversation = await user.load(query.conversation)
        if not conversation.turns:
            return json_response({"success": False, "message": "no prompt", "prompt": None})
        history, message = conversation.without_last(), conversation.turns[-1].user
    prompt = quote(await server.prompt_text(history, message, server.user_params(user)), errors="replace")
    return json_response({"success": True, "message": "success", "prompt": prompt})


@chatstream_endpoint
async def get_load(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /get_load``: current slots and queue, of all servers that share them, and the user's queue positions."""
    user = await server.user_session(request)
    admission = server.admission
    worker = {
        "name": server.name,
        "processing": admission.total_running,
        "waiting": admission.total_waiting,
        "_num_of_next_queue": admission.total_running,
        "_num_of_request_queue": admission.total_waiting,
        "max_processing": admission.slots,
        "max_waiting": admission.queue_size,
    }
    positions = server.queue_positions(user)
    return json_response(
        {"success": True, "message": "success", "chatstream_workers": [worker], "queue_positions": positions}
    )


@chatstream_endpoint
async def get_resource_usage(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /get_resource_usage``: current memory of this machine and of its GPUs, in GiB."""
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


def _gib(size: int) -> float:
    return round(size / GIB, 2)


@json_endpoint
async def healthz(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /healthz``: liveness of the process."""
    return json_response({"status": "alive"})


@json_endpoint
async def readyz(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /readyz``: readiness for requests; 503 while loading or draining. ``GET /health`` is an alias."""
    server.check_ready()
    return json_response({"status": "ready"})


@json_endpoint
async def metrics(server: Server, request: web.Request) -> web.StreamResponse:
    """``GET /metrics``: metrics in Prometheus' text format."""
    if not server.allow_metrics(request):
        raise Forbidden("This client may not read /metrics.")
    return web.Response(body=server.metrics.render(), headers={"Content-Type": CONTENT_TYPE, **COMMON_HEADERS})


def health_middleware(check_ready: Callable[[], None]) -> Middleware:
    """Return a middleware that answers ``GET /health`` like :func:`readyz`, if the application has no such path.

    :param check_ready: raises an error unless the server is ready.
    """

    @web.middleware
    async def health(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPNotFound:
            is_missing = request.match_info.http_exception is not None
            if not (is_missing and request.path == "/health" and request.method in SAFE_METHODS):
                raise
        try:
            check_ready()
        except ChatStreamError as error:
            return error_response(error)
        return json_response({"status": "ready"})

    return health
