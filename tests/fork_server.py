"""A server that forks Python programs from a process that has imported their packages: an import takes seconds.

A request is JSON with the program's arguments, working directory and environment, whether its input is its controlling
terminal, and four descriptors: its input, output and errors, and a socket. The socket receives the process id, and the
exit code when the program has ended; the process remains a zombie until the client closes the socket. If the client
closes the socket earlier, for example because it is killed, the program and its children are killed.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import sys
import termios
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODULES = """
    aiohttp aiohttp_session redis.asyncio torch transformers transformers.modeling_gguf_pytorch_utils
    transformers.models.auto.modeling_auto transformers.models.llama.modeling_llama
    aiochatstream.bench.command aiochatstream.chat_stream aiochatstream.cli.main aiochatstream.compat
    aiochatstream.console.command aiochatstream.engines.transformers aiochatstream.web.openapi.document
"""
"""Modules to import. Programs import all others themselves."""

MAX_REQUEST = 1 << 17


def main() -> None:
    for module in MODULES.split():
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # programs need not visit these objects
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        program = serve(requests)
    if program is not None:
        run(*program)


@dataclass(frozen=True)
class Child:
    """A program, its pidfd, and the socket of its client."""

    pid: int
    process: int
    client: socket.socket


def serve(requests: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Fork a process for each request. Return the request and its descriptors in that process, and None at the end."""
    children: dict[int, Child] = {}
    events = select.poll()
    events.register(requests, select.POLLIN)
    while True:
        for ready, _ in events.poll():
            if ready == requests.fileno():
                message, descriptors, *_ = socket.recv_fds(requests, MAX_REQUEST, 4)
                if not message:
                    return None
                pid = os.fork()
                if not pid:
                    return json.loads(message), descriptors
                *streams, connection = descriptors
                for stream in streams:
                    os.close(stream)
                child = Child(pid, os.pidfd_open(pid), socket.socket(fileno=connection))
                child.client.sendall(f"{pid}\n".encode())
                for descriptor in (child.process, child.client.fileno()):
                    children[descriptor] = child
                    events.register(descriptor, select.POLLIN)
                continue
            events.unregister(ready)
            child = children.pop(ready)
            if ready == child.process:
                report_end(child)
            else:  # the client has closed its socket
                end(child)
                if children.pop(child.process, None) is not None:
                    events.unregister(child.process)
                os.close(child.process)
                child.client.close()


def report_end(child: Child) -> None:
    """Send the exit code of a process that has ended; for a signal, its negative number."""
    ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    with suppress(BrokenPipeError):
        child.client.sendall(f"{code}\n".encode())


def end(child: Child) -> None:
    """Kill a program and its children, if they still run."""
    os.kill(child.pid, signal.SIGKILL)
    with suppress(ProcessLookupError):  # before its setsid
        os.killpg(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)


def run(request: dict[str, Any], descriptors: list[int]) -> None:
    """Run a program as the interpreter would, up to the end of this process."""
    os.setsid()
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    if request["terminal"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = output_stream(1, "strict", unbuffered)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = output_stream(2, "backslashreplace", unbuffered)  # type: ignore[misc]
    first, *arguments = request["arguments"]
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [folder for folder in folders if folder and folder not in sys.path]
    if first == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *arguments[1:]]
        exec(compile(arguments[0], "<string>", "exec"), vars(sys.modules["__main__"]))  # noqa: S102
    elif first == "-m":
        sys.path[0] = request["cwd"]
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(first).parent)
        sys.argv = [first, *arguments]
        runpy.run_path(first, run_name="__main__")


def output_stream(descriptor: int, errors: str, unbuffered: bool) -> io.TextIOWrapper:
    """Return the output stream of a descriptor, line-buffered if it is a terminal or that of errors."""
    text = open(descriptor, "w", encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
    text.reconfigure(line_buffering=descriptor == 2 or text.isatty(), write_through=unbuffered)
    return text


if __name__ == "__main__":
    main()
