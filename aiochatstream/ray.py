"""Servers on a Ray cluster: a Ray Serve application whose replicas are servers of one model.

::

    serve run aiochatstream.ray:app model=Qwen/Qwen3-8B replicas=4
    aiochatstream serve list+http://ray-head:8000/upstreams

Ray places, restarts and scales the replicas. Each of them listens on a port of its node. ``GET /upstreams`` of the
application returns their URLs, and a server in front of them sends them the requests: no token passes through Ray.

Ray needs a private network: it listens on all addresses of its nodes, without encryption, and everyone who has its
token, or reaches a cluster without a token, can run programs there. The replicas themselves require an API key if their
nodes have one, in a file (``api_key_file``) or in the environment variable AIOCHATSTREAM_API_KEYS. Arguments contain no
keys, because Ray's dashboard shows them.
"""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from aiohttp import web
from pydantic import ConfigDict, Field, model_validator

from aiochatstream.chat_stream import ChatStream
from aiochatstream.cli import listening
from aiochatstream.cli.serve import HANDLER_ARGS, OPENAI_PREFIX, SHUTDOWN_TIMEOUT, read_api_keys
from aiochatstream.console.options import ModelParams
from aiochatstream.console.prompt_options import prompt_class_of
from aiochatstream.engines import Engine
from aiochatstream.engines.load_options import DeviceMap, DTypeName, LoadOptions, Quantize
from aiochatstream.extras import requires_extra
from aiochatstream.params import Limits, MaxNewTokens, ServerOptions
from aiochatstream.texts import texts_for

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext
    from ray.serve.handle import DeploymentHandle
    from starlette.requests import Request

LIST_PATH = "/upstreams"

LIST_SECONDS = 2.0
"""Maximum seconds to ask the replicas for their URLs."""

UNLISTED_SECONDS = 7.0
"""Seconds that a replica still accepts requests after it has left the list, until servers in front have read it."""

DRAIN_SECONDS = 300.0
"""Maximum seconds to finish the answers of a replica that Ray removes."""

HEALTH_CHECK_SECONDS = 2.0
"""Seconds between two health checks of a replica, and so until Ray replaces one that was killed."""

QUEUE = 64
"""Waiting requests of each replica: those that a server in front sends beyond ``concurrency``."""

TARGET_LOAD = 0.8
"""Mean load of the replicas at which their number stays the same; see :meth:`ModelServer.record_autoscaling_stats`."""

logger = logging.getLogger(__name__)


Replicas = Annotated[int, Field(ge=1, le=1000, description="a whole number from 1 to 1000")]
ContextLen = Annotated[int, Field(ge=16, le=10_000_000, description="a whole number of tokens from 16 to 10000000")]
Switch = Annotated[bool, Field(description="true or false")]
Ports = Annotated[
    str, Field(pattern=r"^\d{1,5}(-\d{1,5})?$", description="a port from 0 to 65535, or a range such as 8100-8199")
]


class AppArguments(ServerOptions):
    """Arguments of :func:`app`, as values or as text. Raise ValueError that names the argument.

    model: HuggingFace id, folder or .gguf file, the same on all nodes; None for the small model.
    replicas: number of servers, or its minimum if there is ``max_replicas``.
    max_replicas: maximum number of servers; Ray then changes the number with their load. None for a fixed number.
    num_gpus, num_cpus: GPUs and CPUs that Ray reserves for each server, also fractions.
    concurrency: answers that each server generates at a time.
    ports: port of the servers on their nodes, or a range such as ``8100-8199`` from which each takes a free one; 0 for
        any free port.
    api_key_file: file on each node with the API keys of the servers, one per line; None for the environment variable
        AIOCHATSTREAM_API_KEYS of the nodes.
    context_len, max_new_tokens: tokens of prompt and answer, and of an answer; None for as many as model and memory
        allow.
    compile: True compiles the model.
    device, dtype, device_map, revision, trust_remote_code, quantize, adapter: see :class:`LoadOptions`.
    """

    model_config = ConfigDict(strict=False, coerce_numbers_to_str=True)

    model: str | None = None
    replicas: Replicas = 1
    max_replicas: Replicas | None = None
    num_gpus: Annotated[float, Field(ge=0, le=64, description="a number from 0 to 64")] = 1.0
    num_cpus: Annotated[float, Field(ge=0, le=1024, description="a number from 0 to 1024")] = 1.0
    concurrency: Annotated[int, Field(ge=1, le=1024, description="a whole number from 1 to 1024")] = 2
    ports: Ports = "0"
    api_key_file: Path | None = None
    context_len: ContextLen | None = None
    max_new_tokens: MaxNewTokens | None = None
    compile: Switch = False
    device: str = "auto"
    dtype: DTypeName = "auto"
    device_map: DeviceMap | None = None
    revision: str | None = None
    trust_remote_code: Switch = False
    quantize: Quantize | None = None
    adapter: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas: must be at least replicas ({self.replicas}), not {self.max_replicas}")
        if not self.port_range or self.port_range[-1] > 65535:
            raise ValueError(f"ports: must be a port from 0 to 65535, or a range such as 8100-8199, not {self.ports}")
        try:
            self.load_options()
        except ValueError as error:
            raise ValueError(str(error).removesuffix(".")) from None
        return self

    @property
    def port_range(self) -> range:
        """Ports to try, in this order."""
        first, _, last = self.ports.partition("-")
        return range(int(first), int(last or first) + 1)

    def load_options(self) -> LoadOptions:
        """Return the options for loading the model. Raise ValueError if they contradict each other."""
        return LoadOptions(**self.model_dump(include={field.name for field in fields(LoadOptions)}))


class ModelServer:
    """A server of the model, on its own port. A replica of Ray Serve, which awaits the constructor."""

    async def __init__(self, arguments: AppArguments) -> None:  # type: ignore[misc]
        import ray.util

        self._chat_stream = _chat_stream(arguments)
        app = web.Application(handler_args=HANDLER_ARGS)
        keys = read_api_keys(arguments.api_key_file)
        self._chat_stream.setup_openai(app, OPENAI_PREFIX, keys)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT)
        await runner.setup()
        await self._chat_stream.wait_ready()
        host = ray.util.get_node_ip_address()
        listener = _listen(host, arguments.port_range)
        await web.SockSite(runner, listener, backlog=listening.BACKLOG).start()
        self._url = listening.url_of(host, listener.getsockname()[1])
        # Ray awaits this at a graceful shutdown. As an attribute of the class, Python would call it again.
        self.__del__ = runner.cleanup
        if not keys.required:
            logger.warning("%s requires no API key: everyone who reaches it can use the model.", self._url)

    async def url(self) -> str:
        """Return the URL of the server."""
        return self._url

    async def check_health(self) -> None:
        """Raise the error of an engine that has stopped, so that Ray replaces this replica. Called by Ray."""
        if (error := self._chat_stream.engine.unavailable()) is not None:
            raise error

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the running and waiting answers, divided by the slots: above 1, answers wait. Called by Ray."""
        admission = self._chat_stream.admission
        return {"load": (admission.running + admission.waiting) / admission.slots}


class ServerList:
    """The list of the servers. A replica of Ray Serve.

    :param servers: handle of the replicas of :class:`ModelServer`.
    """

    def __init__(self, servers: DeploymentHandle) -> None:
        self._servers = servers
        self._urls: list[str] = []

    async def __call__(self, request: Request) -> Any:
        """Answer ``GET /upstreams``, without replicas that were killed, load their model, or are to end."""
        from ray.serve.exceptions import DeploymentUnavailableError

        if not request.url.path.endswith(LIST_PATH):
            from starlette.responses import JSONResponse

            return JSONResponse({"error": f"There is only {LIST_PATH}."}, 404)
        try:
            replies = await self._servers.broadcast("url").results_async(timeout_s=LIST_SECONDS, return_exceptions=True)
            self._urls = sorted(reply for reply in replies if isinstance(reply, str))
        except DeploymentUnavailableError:
            self._urls = []
        except TimeoutError:
            logger.warning("A replica does not respond; the list of servers is the last one.")
        return {"upstreams": self._urls}


def scale(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Return the number of replicas at which their mean load is :data:`TARGET_LOAD`. Called by Ray.

    Ray keeps the number between its limits, and waits before it changes the number.
    """
    loads = (context.aggregated_metrics or {}).get("load", {}).values()
    return (sum(loads) / TARGET_LOAD if loads else context.target_num_replicas), {}


def app(arguments: dict[str, Any]) -> Any:
    """Return the Ray Serve application of :class:`AppArguments`.

    Raise ValueError for invalid arguments, and MissingExtra without Ray.
    """
    with requires_extra("ray"):
        from ray import serve
        from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    checked = AppArguments(**arguments)
    scaling: dict[str, Any] = {"num_replicas": checked.replicas}
    if checked.max_replicas is not None:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=checked.replicas,
                max_replicas=checked.max_replicas,
                policy=AutoscalingPolicy(policy_function=scale),
            )
        }
    servers = serve.deployment(
        ModelServer,
        ray_actor_options={"num_gpus": checked.num_gpus, "num_cpus": checked.num_cpus},
        health_check_period_s=HEALTH_CHECK_SECONDS,
        graceful_shutdown_wait_loop_s=UNLISTED_SECONDS,
        graceful_shutdown_timeout_s=UNLISTED_SECONDS + DRAIN_SECONDS + 30,
        **scaling,
    )
    servers_list = serve.deployment(ServerList, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=100)
    return servers_list.bind(servers.bind(checked))


def _chat_stream(arguments: AppArguments) -> ChatStream:
    answer, context_len = arguments.max_new_tokens, arguments.context_len
    return ChatStream(
        num_of_concurrent_executions=arguments.concurrency,
        max_queue_size=QUEUE,
        engine=_engine(arguments),
        chat_prompt_clazz=prompt_class_of(None, completes=True),
        params=ModelParams() if answer is None else ModelParams(max_new_tokens=answer),
        limits=Limits(
            context_len="max" if context_len is None else context_len,
            fill_context=answer is None,
            shutdown_timeout=DRAIN_SECONDS,
        ),
        allow_system_prompt=True,
    )


def _engine(arguments: AppArguments) -> Engine:
    from aiochatstream.engines.transformers import TransformersEngine, loading  # a slow import

    loaders = loading.loaders(arguments.model, arguments.load_options())
    return TransformersEngine(*loaders, compile=arguments.compile, quantize=arguments.quantize)


def _listen(host: str, ports: range) -> socket.socket:
    """Return a socket that listens on the first free port. Raise OSError if there is none."""
    for port in ports:
        with suppress(OSError):
            return listening.listen(host, port, texts_for("en"))
    raise OSError(f"ports: none of {ports[0]} to {ports[-1]} is free on {host}.")
