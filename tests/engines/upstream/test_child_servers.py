from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from aiochatstream.engines.upstream import child_servers
from aiochatstream.engines.upstream.child_servers import ChildServers, back_off
from tests.engines.upstream.child_parent import command
from tests.engines.upstream.model_server import open_pool
from tests.helpers import until
from tests.processes import PYTHON, running

StartChildren = Callable[..., Awaitable[ChildServers]]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    file = tmp_path / "log"
    file.touch()
    return file


@pytest.fixture
def processes(log: Path) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Yield a function that returns the facts of all children, of which none is left after the test."""

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    yield read
    left = [child["pid"] for child in read() if not has_ended(child["pid"])]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


@pytest.fixture
async def start_children(log: Path, processes: object) -> AsyncIterator[StartChildren]:
    async with AsyncExitStack() as stack:

        async def start(*devices: str, mode: str = "serve", **options: Any) -> ChildServers:
            children = ChildServers(lambda device, path: command(log, mode, device, path), devices, **options)
            stack.push_async_callback(children.close)
            await children.open()
            return children

        yield start


def has_ended(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.mark.slow
@pytest.mark.both_loops
async def test_a_killed_server_is_started_again_and_the_other_one_goes_on(
    start_children: StartChildren, processes: Callable[[], list[dict[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    children = await start_children("cuda:0", "cuda:1", slots_of=lambda device: 3)
    assert [upstream.name for upstream in children.upstreams] == ["cuda:0", "cuda:1"]
    async with open_pool(*children.upstreams) as pool:
        await until(lambda: pool.capacity == 6)
        first, second = processes()
        assert {first["device"], second["device"]} == {"cuda:0", "cuda:1"}
        assert first["folder_mode"] == 0o700
        server = next(server for server in pool.servers if server.name == first["device"])
        os.kill(first["pid"], signal.SIGKILL)
        await until(lambda: has_ended(first["pid"]))
        server.fail("connection reset.")
        assert pool.capacity == 3
        await until(lambda: pool.capacity == 6)
        assert len(processes()) == 3
        assert processes()[2]["device"] == first["device"]
        assert not has_ended(second["pid"])
        await children.close()
    assert all(has_ended(child["pid"]) for child in processes())
    assert not children._folder.exists()
    assert "The server of cuda:" in caplog.text
    assert "has ended: killed by SIGKILL. It starts again in 0.5 s." in caplog.text


@pytest.mark.slow
async def test_a_server_that_ends_at_once_is_started_less_and_less_often(
    start_children: StartChildren,
    processes: Callable[[], list[dict[str, Any]]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child_servers, "MIN_BACK_OFF", 0.001)
    children = await start_children("cpu", mode="exit")
    await until(lambda: len(processes()) == 3)
    await children.close()
    texts = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert texts[:2] == [
        "The server of cpu has ended: exit status 3. It starts again in 0.001 s.",
        "The server of cpu has ended: exit status 3. It starts again in 0.002 s.",
    ]


@pytest.mark.slow
async def test_a_server_that_ignores_sigterm_is_killed(
    start_children: StartChildren, processes: Callable[[], list[dict[str, Any]]]
) -> None:
    children = await start_children("cpu", mode="ignore", stop_seconds=0.1)
    async with open_pool(*children.upstreams) as pool:
        await until(lambda: pool.servers)
        await children.close()
    assert [has_ended(child["pid"]) for child in processes()] == [True]


@pytest.mark.slow
@pytest.mark.both_loops
async def test_servers_that_have_just_been_started_end(
    start_children: StartChildren, processes: Callable[[], list[dict[str, Any]]]
) -> None:
    children = await start_children("cpu", "cpu")
    await children.close()
    assert not children._folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["serve", "ignore"])
async def test_servers_end_with_a_parent_that_is_killed(
    tmp_path: Path, log: Path, processes: Callable[[], list[dict[str, Any]]], mode: str
) -> None:
    arguments = [PYTHON, "-m", "tests.engines.upstream.child_parent", str(log), mode]
    with (
        tempfile.TemporaryDirectory() as folder,  # tmp_path is too long for a socket
        running(arguments, tmp_path / "parent", env={"TMPDIR": folder}) as parent,
    ):
        await until(lambda: len(processes()) == 2)
        parent.popen.kill()
        parent.wait_ended()
        await until(lambda: all(has_ended(child["pid"]) for child in processes()))


@pytest.mark.slow
async def test_a_missing_program_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    children = ChildServers(lambda device, path: ["/nowhere/program"], ["cpu"])
    await children.open()
    await until(lambda: "The server of cpu has ended: No such file or directory." in caplog.text)
    await children.close()


@pytest.mark.slow
async def test_servers_on_the_cpu_divide_its_cores(
    start_children: StartChildren,
    processes: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(child_servers, "_cores", lambda: 9)
    children = await start_children("cpu", "cpu")
    assert [upstream.name for upstream in children.upstreams] == ["cpu-0", "cpu-1"]
    await until(lambda: len(processes()) == 2)
    await children.close()
    assert [child["threads"] for child in processes()] == ["4", "4"]


def test_the_cores_of_this_process_are_counted() -> None:
    assert 1 <= child_servers._cores() <= (os.cpu_count() or 1)


def test_the_pause_before_a_start_doubles_up_to_a_limit() -> None:
    assert [back_off(starts) for starts in (1, 2, 3, 4, 5, 6, 7, 8, 10_000)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize("devices", [[], "cpu", ["gpu 1"], ["cuda:x"], [""]])
def test_devices_are_checked(devices: Any) -> None:
    with pytest.raises(ValueError, match=r"^devices: must be devices such as cpu or cuda:0, not "):
        ChildServers(lambda device, path: [], devices)
