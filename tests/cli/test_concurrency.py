"""The default of ``--concurrency``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BloomConfig, LlamaConfig

from aiochatstream.cli import device_options, engines
from aiochatstream.cli.concurrency import default_slots
from aiochatstream.cli.main import build_parser
from aiochatstream.engines.transformers import loading
from aiochatstream.engines.upstream import child_servers
from aiochatstream.texts import texts_for
from tests.cli.test_main import serve, url_when_ready
from tests.engines.transformers.checkpoints import save_model, save_sarashina_tokenizer
from tests.processes import ask


@pytest.mark.parametrize(
    ("device", "batched", "slots"),
    [("cpu", True, 8), ("mps", True, 8), ("cuda", True, 32), ("cuda:1", True, 32), ("cuda", False, 2)],
)
def test_the_default_suits_the_device(device: str, batched: bool, slots: int) -> None:
    assert default_slots(device, batched=batched) == slots


@pytest.mark.parametrize(
    ("arguments", "slots"),
    [
        ([], [32]),
        (["model"], [32]),
        (["model", "--device", "cpu"], [8]),
        (["--model", "a=model", "--model", "b=http://127.0.0.1:1"], [32, None]),
        (["model", "--concurrency", "3"], [3]),
        (["http://127.0.0.1:1"], [None]),
        (["http://127.0.0.1:1", "--concurrency", "100"], [100]),
        (["--mock", "echo"], [None]),
        (["--replay", "folder"], [None]),
        (["--devices", "cuda:0,cuda:1"], [None]),  # the sum of the devices'
    ],
)
def test_only_a_model_of_this_process_has_a_default(
    arguments: list[str], slots: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "choose_device", lambda name: torch.device("cuda" if name == "auto" else name))
    options = build_parser().parse_args(["serve", *arguments])
    assert [engines.slots_of(options, source) for source in engines.sources_of(options)] == slots


@pytest.mark.parametrize(("arguments", "slots"), [([], [32, 8]), (["--concurrency", "3"], [3, 3])])
def test_each_of_several_devices_has_the_slots_that_suit_it(
    arguments: list[str], slots: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    created: list[Any] = []

    class Children(child_servers.ChildServers):
        def __init__(self, command_of: Any, devices: Any, **options: Any) -> None:
            super().__init__(command_of, devices, **options)
            created.append([command_of(device, Path("/0.sock")) for device in devices])
            created.append([upstream.slots for upstream in self.upstreams])

    monkeypatch.setattr(child_servers, "ChildServers", Children)
    options = build_parser().parse_args(["serve", "model", "--devices", "cuda:0,cpu", *arguments])
    device_options.engine_of(options, "model", "http://127.0.0.1:1", texts_for("en"))
    commands, slots_of_upstreams = created
    assert slots_of_upstreams == slots
    assert [command[command.index("--concurrency") + 1] for command in commands] == [str(count) for count in slots]


@pytest.mark.parametrize(("config", "slots"), [(LlamaConfig, 8), (BloomConfig, 2)])
def test_a_model_that_cannot_be_batched_has_two_slots(config: Any, slots: int, tmp_path: Path) -> None:
    folder = save_model(save_sarashina_tokenizer(tmp_path / "model"), config)
    with serve(tmp_path, str(folder), "--device", "cpu", "--context-len", "128") as process:
        url = url_when_ready(process)
        assert re.search(rf"^  concurrency +{slots} answers at a time$", process.out, re.MULTILINE)
        assert ask(f"{url}/get_load").json["chatstream_workers"][0]["max_processing"] == slots
