"""bench/report.py, as a user runs it, with JSON written by hand."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.processes import PYTHON, ROOT, Finished, finish

RESULTS = ROOT / "bench" / "results"
NAMES = ("compare", "overhead", "scaling", "engine", "quality", "browser", "soak")
SVG = "{http://www.w3.org/2000/svg}"


def times(p50: float) -> dict[str, float]:
    return {"count": 4, "mean": p50, "p50": p50, "p90": p50 * 2, "p95": p50 * 3, "p99": p50 * 4}


def compare_round(server: str, concurrency: int, rate: float, ttft: float | None, **more: int) -> dict[str, Any]:
    """Return a round with answers of 64 tokens."""
    return {
        "server": server,
        "concurrency": concurrency,
        "round": 0,
        "requests": 8,
        "ok": 8,
        "refused": 0,
        "failed": 0,
        "took_s": 10.0,
        "output_tokens_per_s": rate,
        "requests_per_s": rate / 64,
        "ttft_s": None if ttft is None else times(ttft),
        "tpot_s": None if ttft is None else times(0.05),
        "itl_s": None if ttft is None else times(0.04),
        "e2e_s": None if ttft is None else times(2.0),
        "answer_tokens_mean": None if ttft is None else 64.0,
        "client_cpu": 0.25,
    } | more


COMPARE = {
    "servers": [
        {
            "name": "ours",
            "title": "aiochatstream",
            "protocol": "sse",
            "versions": {"torch": "9.8"},
            "command": "aiochatstream serve {model}",
            "note": "two | slots",
            "measured": True,
            "reason": None,
        },
        {
            "name": "other",
            "title": "Other <server>",
            "protocol": "openai",
            "versions": {},
            "command": "other serve",
            "note": "",
            "measured": True,
            "reason": "terminated by SIGSEGV",
            "faults": {"connection lost": 8},
        },
        {
            "name": "absent",
            "title": "Absent",
            "protocol": "openai",
            "versions": None,
            "command": "absent serve",
            "note": "",
            "measured": False,
            "reason": "It is not installed.",
        },
    ],
    "rounds": [
        compare_round("ours", 1, 10.0, 0.1),
        compare_round("other", 1, 32.0, 0.2),
        compare_round("ours", 1, 40.0, 0.3),
        compare_round("other", 1, 32.0, 0.2),
        compare_round("ours", 1, 20.0, 0.2),
        compare_round("ours", 4, 64.0, 1.0, ok=5, refused=2, failed=1),
        compare_round("ours", 4, 64.0, 1.0, ok=7, refused=1),
        compare_round("other", 4, 0.0, None, ok=0, failed=6, cut=True),
    ],
    "remarks": ["other: it was <cut>"],
    "ratios": [
        {
            "server": "other",
            "baseline": "ours",
            "concurrency": 1,
            "metric": "output_tokens_per_s",
            "median": 2.0,
            "low": 0.8,
            "high": 3.2,
            "pairs": [3.2, 0.8],
        },
        {
            "server": "other",
            "baseline": "ours",
            "concurrency": 1,
            "metric": "some_other_metric",
            "median": 1.335,
            "low": 0.667,
            "high": 2.0,
            "pairs": [2.0, 0.667],
        },
    ],
}


def overhead_round(answers: float, cpu: float, **more: float) -> dict[str, float]:
    return {
        "answers_per_s": answers,
        "chunks_per_s": answers * 200,
        "cpu_us_per_chunk": cpu,
        "reads_per_answer": 50.0,
        "client_cpu": 0.2,
    } | more


OVERHEAD = {
    "answers": {
        "text": {
            "rounds": {
                "ours": [overhead_round(10.0, 20.0, first_ms=1.5), overhead_round(30.0, 30.0, first_ms=2.5)],
                "bare": [overhead_round(40.0, 5.0, first_ms=0.5), overhead_round(40.0, 5.0, first_ms=0.5)],
                "chatstream": [overhead_round(5.0, 40.0, first_ms=9.0), overhead_round(5.0, 40.0, first_ms=9.0)],
            },
        },
        "sse": {"rounds": {"ours": [], "bare": []}},
    },
    "memory_kib_per_client": {"waiting": 12.34, "chatstream": 99.0},
    "lag_s": {"idle": times(0.001), "generating": None},
    "added_latency_s": {"ours": times(0.002)},
}


def engine_row(part: str, at: str, unit: str, engine: float, plain: float) -> dict[str, Any]:
    return {
        "part": part,
        "at": at,
        "unit": unit,
        "engine": [engine],
        "plain": [plain],
        "engine_spread": {"median": engine, "low": engine - 1, "high": engine + 1},
        "plain_spread": {"median": plain, "low": plain, "high": plain},
        "ratio": {"median": engine / plain, "low": engine / plain, "high": engine / plain},
    }


ENGINE = {
    "weight_bytes": 256 * 2**20,
    "bandwidth_bytes_per_s": 32e9,
    "floor_ms": 8.0,
    "rows": [
        engine_row("prefill", "64 tokens", "tokens/s", 900.0, 300.0),
        engine_row("decode", "after 32 tokens", "ms/step", 20.0, 40.0),
        engine_row("decode", "after 512 tokens", "ms/step", 24.0, 48.0),
        engine_row("batch", "2 at once", "tokens/s", 50.0, 25.0),
        engine_row("turns", "128 tokens before", "ms to first token", 30.0, 300.0),
        engine_row("something new", "here", "pints", 2.0, 4.0),
    ],
    "stalls": [{"answers": 4, "p50 before, ms": 21.52, "ratio": 2.8}],
    "besides": [{"tokens": 6000, "question alone, ms": 40.5, "question beside/alone": 1.8}],
    "hybrids": [{"hybrid": "lfm2", "rows": 16, "step, ms": 91.5, "growth": 1.75}],
    "lookups": [{"sequences": 10000, "new prompt, us": 39.25, "new prompt, ratio": 1.25}],
    "chats": [{"chats": 16, "KV cache, tokens": 8192, "in use, tokens": 1024, "in use/whole": 0.03}],
    "profiles": [{"rows": 1, "step": 20.04, "linear layers": 15.5}, {"rows": 16, "step": 40.0, "linear layers": 25.0}],
}

SOAK = {
    "verdict": {
        "holds": False,
        "checks": [
            {"name": "gauges", "measured": 0, "limit": 0, "detail": "", "word": "ok"},
            {"name": "memory", "measured": 1234.4, "limit": 512.0, "detail": "KiB per 1,000", "word": "FAILED"},
            {"name": "threads", "measured": None, "limit": 5, "detail": "", "word": "not measured"},
        ],
    },
    "requests": 12345,
    "actions": {"abort early": 5, "turn": 3000},
    "outcomes": {"completed": 2990, "refused": 10},
    "faults": ["turn: HTTP 500"],
    "samples": [{"requests": 10, "rss": 60 * 2**20}, {"requests": 100, "rss": 70 * 2**20}],
}

QUALITY = {
    "questions": ["Which | one?"],
    "results": [
        {
            "precision": "float32",
            **dict.fromkeys(("kl_mean", "kl_p99", "same_top")),
            "nll": 2.75,
            "answers": ["This\none."],
        },
        {
            "precision": "int8",
            "kl_mean": 0.00451,
            "kl_p99": 0.0271,
            "same_top": 0.9632,
            "nll": 2.76,
            "answers": ["That."],
        },
    ],
}

BROWSER = {
    "rounds": [
        {"first_paint_ms": 100.4, "first_bytes": 123456, "long_tasks": 0, "something_new": 0.25},
        {"first_paint_ms": 300.0, "first_bytes": 123456, "long_tasks": 3, "something_new": 0.25},
    ]
}


def scaling_row(scenario: str, case: str, server: str, **figures: float) -> dict[str, Any]:
    return {"scenario": scenario, "case": case, "server": server, "round": 0, **figures}


LOAD = {"whole": 100, "wrong": 0, "lost": 0, "refused": 0, "hung": 0}

SCALING = {
    "rows": [
        scaling_row("overhead", "200 streams", "direct", **LOAD, tokens_per_s=4000.0, ttft_p50_s=0.001),
        scaling_row("overhead", "200 streams", "relay", **LOAD, tokens_per_s=3000.0, cpu_us_per_token=30.0, rss_mib=60),
        scaling_row("overhead", "200 streams", "relay", **LOAD, tokens_per_s=3200.0, cpu_us_per_token=40.0, rss_mib=70),
        scaling_row("kill", "100 | streams", "chat", **LOAD, longest_gap_s=0.25),
        scaling_row("kill", "100 | streams", "chat", **LOAD | {"whole": 98, "lost": 2}, longest_gap_s=0.125),
        scaling_row("leave", "while text arrives", "chat", p50_s=0.02, max_s=0.0305, missed=1),
        scaling_row("something new", "here", "chat", p50_s=0.5),
    ],
    "bars": [
        {"name": "kill, chat: lost", "measured": 2, "limit": 0, "minimum": False, "passed": False},
        {"name": "affinity", "measured": 0.971, "limit": 0.95, "minimum": True, "passed": True},
    ],
    "not_measured": {"litellm": "not <installed>"},
}

REPORTS: dict[str, dict[str, Any]] = {
    "compare": COMPARE,
    "overhead": OVERHEAD,
    "scaling": SCALING,
    "engine": ENGINE,
    "quality": QUALITY,
    "browser": BROWSER,
    "soak": SOAK,
}


def write_json(folder: Path, name: str, **changes: Any) -> None:
    """Write the JSON file of a script, with ``changes`` of its fields."""
    common = {
        "schema": f"aiochatstream-bench-{name}",
        "schema_version": 1,
        "created": "2026-01-02T03:04:05+00:00",
        "interrupted": False,
        "command": f"python bench/{name}.py --rounds 3",
        "parameters": {"rounds": 3, "parts": ["a", "b"], "model": None},
        "environment": {"cpu": "Abacus", "cores": 2, "load_average": [0.5, 1, 2.25], "system": "Os", "python": "3.99"},
    }
    (folder / f"{name}.json").write_text(json.dumps(common | REPORTS[name] | changes))


def run_report(folder: Path, *, forked: bool = True) -> Finished:
    command = [PYTHON, str(ROOT / "bench" / "report.py"), str(folder)]
    return finish(command, env={"PYTHONPATH": str(ROOT)}, forked=forked)


def generated(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".md", ".svg")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all JSON files and the page generated from them."""
    folder = tmp_path_factory.mktemp("results")
    for name in NAMES:
        write_json(folder, name)
    process = run_report(folder, forked=False)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="module")
def lines(folder: Path) -> list[str]:
    return (folder / "README.md").read_text().splitlines()


@pytest.mark.parametrize(
    "line",
    [
        # ours at 1: 10, 40 and 20 tokens/s; 20 / 64 = 0.3125 requests/s; TTFT 0.1, 0.3 and 0.2 s, p99 four times that
        "| aiochatstream | 1 | 20.0 (10.0-40.0) | 0.31 | 200.0 | 800.0 | 50.0 | 40.0 | 2,000.0 | 64.0 | 3 |  |",
        "| Other &lt;server> | 1 | 32.0 (32.0-32.0) | 0.50 | 200.0 | 800.0 | 50.0 | 40.0 | 2,000.0 | 64.0 | 2 |  |",
        "| aiochatstream | 4 | 64.0 (64.0-64.0) | 1.00 | 1,000.0 | 4,000.0 | 50.0 | 40.0 | 2,000.0 | 64.0 | 2 "
        "| 3 refused, 1 failed of 16 |",
        "| Other &lt;server> | 4 | - | 0.00 | - | - | - | - | - | - | 1 (1 cut short) | 6 failed, 2 unfinished of 8 |",
        "- not measured further: terminated by SIGSEGV",
        "- 8 x connection lost",
        "- other: it was &lt;cut>",
        "| server / baseline | users | output tokens/s | some_other_metric | pairs |",
        "| Other &lt;server> / aiochatstream | 1 | 2.00 (0.80-3.20) | 1.33 (0.67-2.00) | 2 |",
        "**aiochatstream** (protocol sse, torch 9.8): two \\| slots",
        "**Absent** (protocol openai): not measured. It is not installed.",
        "The load generator used at most 25% of a core.",
    ],
)
def test_compare_shows_the_figures_of_the_json(lines: list[str], line: str) -> None:
    assert line in lines


@pytest.mark.parametrize(
    "line",
    [
        "| format | server | answers/s | chunks/s | CPU, µs/chunk | reads/answer | client, cores | first ms "
        "| ours / server, answers/s | ours / server, CPU | rounds |",
        "| text | ours | 20.0 (10.0-30.0) | 4,000 (2,000-6,000) | 25.0 (20.0-30.0) | 50 (50-50) | 0.20 (0.20-0.20) "
        "| 2.00 (1.50-2.50) | - | - | 2 |",
        # pairs: 10 / 40 and 30 / 40; 20 / 5 and 30 / 5
        "| text | bare | 40.0 (40.0-40.0) | 8,000 (8,000-8,000) | 5.0 (5.0-5.0) | 50 (50-50) | 0.20 (0.20-0.20) "
        "| 0.50 (0.50-0.50) | 0.50 (0.25-0.75) | 5.00 (4.00-6.00) | 2 |",
        # pairs: 10 / 5 and 30 / 5; 20 / 40 and 30 / 40
        "| text | chatstream | 5.0 (5.0-5.0) | 1,000 (1,000-1,000) | 40.0 (40.0-40.0) | 50 (50-50) "
        "| 0.20 (0.20-0.20) | 9.00 (9.00-9.00) | 4.00 (2.00-6.00) | 0.62 (0.50-0.75) | 2 |",
        "| waiting | 12.3 |",
        "| idle | 1.00 | 2.00 | 3.00 | 4.00 | 1.00 | 4 |",
        "Added latency:",
        "| ours | 2.00 | 4.00 | 6.00 | 8.00 | 2.00 | 4 |",
    ],
)
def test_overhead_shows_all_servers_and_figures_of_the_json(lines: list[str], line: str) -> None:
    assert line in lines


@pytest.mark.parametrize(
    "line",
    [
        "- litellm: not measured: not &lt;installed>",
        "| kill, chat: lost | 2 | ≤ 0 | **no** |",
        "| affinity | 0.97 | ≥ 0.95 | yes |",
        "| case | server | whole | wrong | lost | refused | hung | tokens/s | CPU, µs/token | TTFT p50, ms "
        "| memory, MiB | rounds |",
        "| 200 streams | direct | 100 | 0 | 0 | 0 | 0 | 4,000 | - | 1.0 | - | 1 |",
        "| 200 streams | relay | 200 | 0 | 0 | 0 | 0 | 3,100 (3,000-3,200) | 35.0 (30.0-40.0) | - | 70 | 2 |",
        "| 100 \\| streams | chat | 198 | 0 | 2 | 0 | 0 | 0.25 | 2 |",
        "| while text arrives | chat | 20.0 | 30.5 | 1 | 1 |",
        "something new",
    ],
)
def test_scaling_shows_the_figures_of_the_json(lines: list[str], line: str) -> None:
    assert line in lines


@pytest.mark.parametrize(
    "line",
    [
        "| prefill | 64 tokens | tokens/s | 900.0 (899.0-901.0) | 300.0 (300.0-300.0) | 3.00 (3.00-3.00) |  |",
        "| decode | after 512 tokens | ms/step | 24.0 (23.0-25.0) | 48.0 (48.0-48.0) | 0.50 (0.50-0.50) | 3.0 |",
        "| something new | here | pints | 2.0 (1.0-3.0) | 4.0 (4.0-4.0) | 0.50 (0.50-0.50) |  |",
        "| rows | step | linear layers |",
        "| 1 | 20.04 | 15.50 |",
        "| answers | p50 before, ms | ratio |",
        "| 4 | 21.52 | 2.80 |",
        "| tokens | question alone, ms | question beside/alone |",
        "| 6000 | 40.50 | 1.80 |",
        "| lfm2 | 16 | 91.50 | 1.75 |",
        "| 10000 | 39.25 | 1.25 |",
        "| 16 | 8192 | 1024 | 0.03 |",
        "A step at batch size 1 must read all weights once: 256 MiB at 32.0 GB/s, measured in the same run, take "
        "8.0 ms (the floor).",
    ],
)
def test_engine_shows_the_figures_of_the_json(lines: list[str], line: str) -> None:
    assert line in lines


@pytest.mark.parametrize(
    "line",
    [
        "Result: **FAILED**, after 12,345 requests.",
        "| gauges | 0 | 0 | ok |",
        "| memory, KiB per 1,000 | 1,234 | 512 | FAILED |",
        "| threads | - | 5 | not measured |",
        "- fault: turn: HTTP 500",
        "| turn | 3,000 |",
        "| refused | 10 |",
    ],
)
def test_soak_shows_the_result_of_the_json(lines: list[str], line: str) -> None:
    assert line in lines


@pytest.mark.parametrize(
    "line",
    [
        "| first contentful paint, ms | 200 (100-300) |",
        "| transferred on the first visit, bytes | 123,456 (123,456-123,456) |",
        "| tasks of 50 ms or more during the answer | 2 (0-3) |",
        "| something_new | 0.2 (0.2-0.2) |",
    ],
)
def test_browser_shows_the_figures_of_the_json(lines: list[str], line: str) -> None:
    assert line in lines


@pytest.mark.parametrize(
    "line",
    [
        "| precision | KL mean | KL p99 | same most likely token | negative log likelihood |",
        "| float32 |  |  |  | 2.750 |",
        "| int8 | 0.0045 | 0.027 | 0.963 | 2.760 |",
        "| Which \\| one? | This one. | That. |",
    ],
)
def test_quality_shows_the_figures_and_answers_of_the_json(lines: list[str], line: str) -> None:
    assert line in lines


@pytest.mark.parametrize("name", NAMES)
def test_each_section_shows_date_machine_and_command(lines: list[str], name: str) -> None:
    assert f"python bench/{name}.py --rounds 3" in lines
    assert lines.count("- measured: 2026-01-02 03:04 UTC") == len(NAMES)
    assert lines.count(
        "- machine: Abacus, 2 cores, Os, load average 0.5, 1, 2.25 (1, 5, 15 minutes) at the end"
    ) == len(NAMES)
    assert lines.count("- software: python 3.99") == len(NAMES)
    assert lines.count("- parameters: rounds 3, parts a b") == len(NAMES)


CONCURRENCY = "concurrent users (log)"
AXES = {
    "compare-throughput.svg": {CONCURRENCY, "output tokens/s, all users"},
    "compare-ttft-p50.svg": {CONCURRENCY, "TTFT p50, ms (log)"},
    "compare-ttft-p99.svg": {CONCURRENCY, "TTFT p99, ms (log)"},
    "compare-tpot-p50.svg": {CONCURRENCY, "TPOT p50, ms (log)"},
    "compare-itl-p50.svg": {CONCURRENCY, "ITL p50, ms"},
    "overhead-answers.svg": {"answers/s", "text, chatstream"},
    "overhead-cpu.svg": {"CPU time, µs per chunk", "text, chatstream"},
    "overhead-memory.svg": {"KiB per client", "chatstream"},
    "overhead-lag.svg": {"ms", "idle, p99"},
    "overhead-added-latency.svg": {"ms", "ours, p50"},
    "scaling-cpu.svg": {"CPU time, µs per token", "relay"},
    "engine-prefill.svg": {"prompt, tokens (log)", "prompt tokens/s"},
    "engine-decode.svg": {"context, tokens (log)", "step, ms", "floor"},
    "engine-batch.svg": {"answers in the batch (log)", "tokens/s, all answers"},
    "engine-turns.svg": {"history, tokens (log)", "TTFT, ms"},
    "soak-memory.svg": {"requests so far", "resident memory, MiB"},
}


def test_the_page_shows_all_plots(folder: Path, lines: list[str]) -> None:
    shown = [line.partition("](")[2].removesuffix(")") for line in lines if line.startswith("![")]
    assert sorted(shown) == sorted(AXES) == sorted(generated(folder).keys() - {"README.md"})


@pytest.mark.parametrize("file", AXES)
def test_a_plot_is_well_formed_and_its_axes_have_units(folder: Path, file: str) -> None:
    root = ElementTree.fromstring((folder / file).read_text())  # noqa: S314 - our own
    assert {element.text for element in root.iter(f"{SVG}text")} >= AXES[file]
    assert "nan" not in (folder / file).read_text()


def test_a_plot_draws_the_figures_of_the_json(folder: Path) -> None:
    root = ElementTree.fromstring((folder / "compare-throughput.svg").read_text())  # noqa: S314 - our own
    ticks = {}
    for group in root.iter(f"{SVG}g"):
        if group.get("id", "").startswith("ytick_"):
            [mark], [label] = list(group.iter(f"{SVG}use")), list(group.iter(f"{SVG}text"))
            ticks[float(label.text or "nan")] = float(mark.get("y", "nan"))
    [clip] = {group.get("clip-path") for group in root.iter(f"{SVG}g") if group.get("clip-path")}
    marks = [mark for group in root.iter(f"{SVG}g") if group.get("clip-path") == clip for mark in group]
    ours = [mark for mark in marks if "#0072b2" in mark.get("style", "")]
    scale = (ticks[0] - ticks[20]) / 20
    assert {round((ticks[0] - float(mark.get("y", "nan"))) / scale) for mark in ours} == {
        *(20, 10, 40),  # median, minimum and maximum at one user
        64,  # at four
    }


def test_a_missing_file_is_replaced_by_the_command_that_measures_it(tmp_path: Path) -> None:
    write_json(tmp_path, "soak", interrupted=True)
    assert run_report(tmp_path).returncode == 0
    page = (tmp_path / "README.md").read_text()
    assert page.count("Not measured yet.") == 8
    for command in (
        "compare.py --rounds 2",
        "overhead.py",
        "scaling.py",
        "engine.py",
        "engine.py --compile",
        "quality.py",
        "browser.py",
    ):
        assert f"python bench/{command} --json bench/results/" in page
    assert "**Interrupted**" in page


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"schema": "something-else"}, "soak.json is not JSON of aiochatstream-bench-soak."),
        ({"schema_version": 2}, "soak.json: schema_version must be 1, not 2."),
        ({"verdict": {}}, "soak.json is not complete: KeyError: 'holds'."),
        ({"samples": [5]}, "soak.json is not complete: TypeError"),
    ],
)
def test_json_of_another_form_is_an_error_of_one_sentence(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    write_json(tmp_path, "soak", **changes)
    process = run_report(tmp_path)
    assert process.returncode == 2
    assert sentence in process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert not generated(tmp_path)


def test_invalid_json_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "soak.json").write_text("{")
    process = run_report(tmp_path)
    assert process.returncode == 2
    assert "soak.json cannot be read" in process.stderr
    assert len(process.stderr.splitlines()) == 1


def test_the_same_json_gives_the_same_bytes_and_outdated_plots_are_deleted(folder: Path, tmp_path: Path) -> None:
    for name in NAMES:
        shutil.copy(folder / f"{name}.json", tmp_path)
    (tmp_path / "compare-outdated.svg").write_text("<svg/>")
    (tmp_path / "mine.svg").write_text("<svg/>")
    assert run_report(tmp_path).returncode == 0
    (tmp_path / "mine.svg").unlink()
    assert generated(tmp_path) == generated(folder)


def test_the_committed_page_matches_the_committed_json(tmp_path: Path) -> None:
    for file in RESULTS.glob("*.json"):
        shutil.copy(file, tmp_path)
    assert run_report(tmp_path).returncode == 0
    assert generated(tmp_path) == generated(RESULTS), "stale: run make bench and commit bench/results"


def test_reports_contain_no_path_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    without_paths = importlib.import_module("common").without_paths
    (tmp_path / "model").mkdir()
    assert without_paths(f"--model {tmp_path}/model --json={ROOT}/bench/results/x.json") == (
        "--model model --json=bench/results/x.json"
    )
    assert without_paths(f"[\"{tmp_path}/model\", '{tmp_path}/x.json']") == "[\"model\", 'x.json']"
    home = Path.home()
    assert without_paths(f"file://{home}/a `{home}/b` -I{home}/c @{home}/d >{home}/e {{{home}/none/f}}") == (
        "file://a `b` -Ic @d >e {f}"
    )
    unchanged = "http://127.0.0.1:8080/v1/models meta/llama /v1/models tokens/s 1/2"
    assert without_paths(unchanged) == unchanged
