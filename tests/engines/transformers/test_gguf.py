"""Tests of the conversion of .gguf files, with a converter that writes one file instead of a model."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch
from safetensors.torch import save_file

from aiochatstream.engines.load_options import LoadOptions
from aiochatstream.engines.transformers import gguf as conversion
from aiochatstream.engines.transformers import loading
from tests.helpers import PATIENCE
from tests.processes import PYTHON, ROOT, Program, started


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(conversion, "user_cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF" + bytes(3 << 20))
    return file


def write_model(gguf: Path, target: Path) -> None:
    target.mkdir()
    (target / "config.json").write_text(gguf.name)


def models_in(cache: Path) -> set[Path]:
    """Return the folders that contain files other than locks."""
    return {path.parent for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.mark.parametrize("place", [4, 3 << 19, -1], ids=["beginning", "middle", "end"])
def test_only_a_changed_file_is_converted_again(
    cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    conversions: list[Path] = []

    def convert(gguf: Path, target: Path) -> None:
        conversions.append(gguf)
        write_model(gguf, target)

    monkeypatch.setattr(conversion, "_convert", convert)
    first = conversion.convert_gguf(gguf)
    assert conversion.convert_gguf(gguf) == first
    assert len(conversions) == 1
    assert loading.folder(str(gguf)) == str(first)

    content = bytearray(gguf.read_bytes())
    content[place] = 1
    gguf.write_bytes(content)
    second = conversion.convert_gguf(gguf)
    gguf.write_bytes(content + b"\0")
    third = conversion.convert_gguf(gguf)
    assert len(conversions) == len({first, second, third}) == 3
    assert models_in(cache) == {first, second, third}


def test_a_failed_conversion_leaves_no_files_and_can_be_repeated(
    cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf: Path, target: Path) -> None:
        write_model(gguf, target)
        raise ZeroDivisionError

    monkeypatch.setattr(conversion, "_convert", fail)
    with pytest.raises(ZeroDivisionError):
        conversion.convert_gguf(gguf)
    assert models_in(cache) == set()
    monkeypatch.setattr(conversion, "_convert", write_model)
    folder = conversion.convert_gguf(gguf)
    assert (folder / "config.json").read_text() == "tiny.gguf"
    assert models_in(cache) == {folder}


def test_a_conversion_is_on_the_disk_before_it_becomes_visible(
    cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def recorded_fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(conversion, "_convert", write_model)
    monkeypatch.setattr(os, "fsync", recorded_fsync)
    folder = conversion.convert_gguf(gguf)
    assert synced == ["config.json", "model", folder.parent.name]


def test_a_truncated_converted_model_is_converted_again(
    cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def convert(gguf: Path, target: Path) -> None:
        write_model(gguf, target)
        save_file({"weight": torch.ones(1000)}, target / "model.safetensors")

    monkeypatch.setattr(conversion, "_convert", convert)
    folder = conversion.convert_gguf(gguf)
    weights = folder / "model.safetensors"
    complete = weights.read_bytes()
    for length in (0, 5, 20, len(complete) - 1):
        weights.write_bytes(complete[:length])
        assert conversion.convert_gguf(gguf) == folder
        assert weights.read_bytes() == complete
        assert f"The converted model in {folder} is damaged" in caplog.text
        caplog.clear()
    assert conversion.convert_gguf(gguf) == folder
    assert "damaged" not in caplog.text


def test_a_converted_model_that_cannot_be_loaded_is_an_error_that_names_it(
    cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "_convert", write_model)  # an invalid config.json
    folder = conversion.convert_gguf(gguf)
    for load in loading.loaders(str(gguf), LoadOptions(device="cpu", dtype="float32")):
        with pytest.raises(RuntimeError, match=rf"^The converted model in {folder} cannot be loaded .* delete"):
            load()


class OnLog(logging.Handler):
    """Handler that calls ``callback`` when a message with ``text`` is logged."""

    def __init__(self, text: str, callback: Callable[[], Any]) -> None:
        super().__init__()
        self._text, self._callback = text, callback

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self._callback()


@pytest.fixture
def lock_is_awaited() -> Iterator[threading.Event]:
    """Event that is set when a lock cannot be acquired immediately."""
    event = threading.Event()
    logger, handler = logging.getLogger("filelock"), OnLog("not acquired", event.set)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield event
    logger.setLevel(level)
    logger.removeHandler(handler)


def test_concurrent_threads_convert_once_and_see_only_a_complete_folder(
    cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch, lock_is_awaited: threading.Event
) -> None:
    partial, proceed = threading.Event(), threading.Event()
    calls: list[Path] = []

    def convert(gguf: Path, target: Path) -> None:
        calls.append(target)
        target.mkdir()
        partial.set()
        assert proceed.wait(PATIENCE)
        (target / "config.json").write_text("")

    def convert_and_check() -> tuple[Path, bool]:
        folder = conversion.convert_gguf(gguf)
        return folder, (folder / "config.json").exists()

    monkeypatch.setattr(conversion, "_convert", convert)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(convert_and_check)
        assert partial.wait(PATIENCE)
        second = threads.submit(convert_and_check)
        assert lock_is_awaited.wait(PATIENCE)
        proceed.set()
        folder, complete = first.result(PATIENCE)
        assert second.result(PATIENCE) == (folder, True)
        assert complete
    assert len(calls) == 1
    assert calls[0] != folder, "the incomplete folder was visible"
    assert models_in(cache) == {folder}


PROCESS = """
import logging, sys
from pathlib import Path
from aiochatstream.engines.transformers import gguf as conversion
from tests.engines.transformers.test_gguf import OnLog

def write(text):
    print(text, flush=True)

def convert(gguf, target):
    target.mkdir()
    write("converting")
    sys.stdin.readline()
    (target / "config.json").write_text("")

conversion._convert = convert
conversion.user_cache_path = lambda name: Path(sys.argv[1])
logging.getLogger("filelock").addHandler(OnLog("not acquired", lambda: write("waiting")))
logging.getLogger("filelock").setLevel(logging.DEBUG)
write("ready")
sys.stdin.readline()
folder = conversion.convert_gguf(Path(sys.argv[2]))
write(f"{folder} {[file.name for file in folder.iterdir()]}")
"""


@contextmanager
def stepping(*arguments: str) -> Iterator[tuple[Program, Callable[[], object], TextIO]]:
    """Start :data:`PROCESS`; yield the program, a function that lets it proceed, and its output."""
    steps, write_steps = os.pipe()
    output, write_output = os.pipe()
    command, streams = [PYTHON, "-c", PROCESS, *arguments], [steps, write_output, 2]
    with (
        open(write_steps, "wb", buffering=0) as stepper,
        open(output) as lines,
        started(command, streams, ROOT, os.environ, forked=True) as program,
    ):
        os.close(steps)
        os.close(write_output)
        yield program, lambda: stepper.write(b"\n"), lines


def test_concurrent_processes_convert_once_and_see_only_a_complete_folder(tmp_path: Path, gguf: Path) -> None:
    arguments = str(tmp_path), str(gguf)
    with stepping(*arguments) as (first, proceed_first, lines), stepping(*arguments) as (second, proceed, others):
        assert [lines.readline(), others.readline()] == ["ready\n", "ready\n"]
        proceed_first()
        assert lines.readline() == "converting\n"
        proceed()
        assert others.readline() == "waiting\n"
        proceed_first()
        folder = lines.readline()
        assert folder.endswith(" ['config.json']\n")
        assert [line for line in others if line != "waiting\n"] == [folder]
        assert (first.wait(PATIENCE), second.wait(PATIENCE)) == (0, 0)
