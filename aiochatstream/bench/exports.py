"""The results as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from aiochatstream.bench.load import Load
from aiochatstream.bench.metrics import summarize
from aiochatstream.bench.plan import Plan
from aiochatstream.bench.request import Record

SCHEMA = "aiochatstream-bench"
SCHEMA_VERSION = 1

FIELDS = (
    "concurrency",
    "rate",
    "index",
    "user",
    "turn",
    "kind",
    "outcome",
    "reason",
    "status",
    "start_s",
    "late_s",
    "ttft_s",
    "tpot_s",
    "e2e_s",
    "queue_s",
    "tokens",
    "pieces",
    "prompt_tokens",
    "cached_tokens",
    "wire_bytes",
)
"""What is told of each request. ``start_s`` counts from the beginning of the run."""


def as_json(plan: Plan, loads: Sequence[Load], *, interrupted: bool) -> str:
    """Everything that is known: how it was asked, where, and what came out. Times in seconds."""
    report = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "interrupted": interrupted,
        "parameters": parameters(plan),
        "environment": environment(),
        "runs": [
            {**asdict(summarize(load)), "records": [request(load, record) for record in load.records]} for load in loads
        ],
    }
    return json.dumps(report, ensure_ascii=False, indent=1)


def parameters(plan: Plan) -> dict[str, Any]:
    """What was asked for, without the values of headers (they may be secrets) and the folders of this machine."""
    told = {name: value for name, value in asdict(plan).items() if name not in ("json", "csv", "html")}
    told["headers"] = [[name, "..."] for name, _ in plan.headers]
    for name in ("prompts", "tokenizer"):
        if told[name] and Path(told[name]).exists():
            told[name] = Path(told[name]).name
    return told


def as_csv(loads: Sequence[Load]) -> str:
    """A line for each request of each run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    for load in loads:
        level = {"concurrency": load.concurrency, "rate": load.target.plan.rate}
        writer.writerows({**level, **request(load, record)} for record in load.records)
    return text.getvalue()


def request(load: Load, record: Record) -> dict[str, Any]:
    """One request in plain values."""
    return {
        "index": record.index,
        "user": record.user,
        "turn": record.turn,
        "kind": record.kind,
        "outcome": record.outcome,
        "reason": record.reason,
        "status": record.status,
        "start_s": _round(record.started - load.started),
        "late_s": _round(record.late),
        "ttft_s": _round(record.ttft),
        "tpot_s": _round(record.tpot),
        "e2e_s": _round(record.e2e),
        "queue_s": _round(record.told.queue_s),
        "tokens": record.tokens,
        "pieces": len(record.stamps),
        "prompt_tokens": record.told.prompt_tokens,
        "cached_tokens": record.told.cached_tokens,
        "wire_bytes": record.wire_bytes,
    }


def environment() -> dict[str, Any]:
    """The machine of the load generator."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "aiohttp": metadata.version("aiohttp"),
        "aiochatstream": metadata.version("aiochatstream"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
