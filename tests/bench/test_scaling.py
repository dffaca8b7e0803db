"""bench/scaling.py, as a user runs it, and the client that judges answers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.bench.script_runs import run
from tests.fake_answers import answer_text
from tests.fake_upstream import FakeUpstream, Fault
from tests.processes import ROOT


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module bench/stream_client.py."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("stream_client")


async def test_the_client_tells_whole_answers_from_others(client: Any) -> None:
    faults = [
        Fault("reset", words=4, match=" 1 "),
        Fault("busy", match=" 2 "),
        Fault("end", words=4, match=" 3 "),
        Fault("error_event", words=4, match=" 4 "),
        Fault("finish", words=4, finish_reason="stop", match=" 5 "),
        Fault("silence", words=4, match=" 6 "),
    ]
    async with FakeUpstream(*faults, words=8, split_bytes=5) as upstream:
        load = client.Load(upstream.port, "v1", 7, 8, patience_s=2.0)
        await load.run()
        result = load.result()
    outcomes = [answer.outcome for answer in sorted_by_client(result)]
    assert outcomes == ["whole", "lost", "refused", "lost", "lost", "wrong", "hung"]
    assert result.outcomes == {"whole": 1, "wrong": 1, "lost": 3, "refused": 1, "hung": 1}
    assert result.tokens == 8 + 5 * 4
    whole = sorted_by_client(result)[0]
    assert whole.text == answer_text([{"role": "user", "content": "load 0 0"}], 8)


def sorted_by_client(result: Any) -> list[Any]:
    pairs = zip(result.exchanges, result.answers, strict=True)
    return [answer for _, answer in sorted(pairs, key=lambda pair: pair[0].message)]


def test_routers_that_are_missing_are_reported(tmp_path: Path) -> None:
    options = "overhead kill --rounds 1 --seconds 0.2 --streams 5 --peers nowhere"
    result = run("scaling.py", tmp_path, *options.split())
    assert result.code == 0, result.err
    assert "litellm: not measured: not installed: python bench/peers.py install litellm" in result.out
    assert result.json["schema"] == "aiochatstream-bench-scaling"
    assert "peers" not in result.json["parameters"]
    rows = {(row["scenario"], row["case"], row["server"]): row for row in result.json["rows"]}
    assert {server for scenario, _, server in rows if scenario == "overhead"} == {"direct", "chat", "relay"}
    assert all(row["whole"] == row["requests"] > 0 for row in rows.values() if row["scenario"] == "overhead")
    chat = rows["kill", "100 streams of 120 tokens", "chat"]
    assert (chat["whole"], chat["wrong"], chat["lost"], chat["hung"]) == (100, 0, 0, 0)
    assert 0 < chat["victims"] < 100
    assert "kill, chat: lost" in result.out


@pytest.mark.parametrize("options", [["nothing"], ["--seconds", "nan"]])
def test_wrong_use_is_an_error_of_one_sentence(tmp_path: Path, options: list[str]) -> None:
    result = run("scaling.py", tmp_path, *options, forked=True)
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith("scaling.py: error: ")
    assert "Traceback" not in result.err
