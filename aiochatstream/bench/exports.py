"""Results as JSON and CSV."""

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

from aiochatstream.bench.load import LoadRun
from aiochatstream.bench.metrics import summarize
from aiochatstream.bench.plan import Plan
from aiochatstream.bench.request import RequestRecord

SCHEMA = "aiochatstream-bench"
SCHEMA_VERSION = 1

REQUEST_FIELDS = (
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
"""Fields of a request. ``start_s`` is the time since the start of the run."""


def to_json(plan: Plan, runs: Sequence[LoadRun], *, interrupted: bool) -> str:
    """Return parameters, environment, figures and all requests as JSON. Times are in seconds."""
    report = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "interrupted": interrupted,
        "parameters": parameters(plan),
        "environment": environment(),
        "runs": [
            {**asdict(summarize(run)), "records": [request_row(run, record) for record in run.records]} for run in runs
        ],
    }
    return json.dumps(report, ensure_ascii=False, indent=1)


def parameters(plan: Plan) -> dict[str, Any]:
    """Return the parameters of ``plan`` without values of headers, which may be secret, and without folders."""
    values = {name: value for name, value in asdict(plan).items() if name not in ("json", "csv", "html")}
    values["headers"] = [[name, "..."] for name, _ in plan.headers]
    for name in ("prompts", "tokenizer"):
        if values[name] and Path(values[name]).exists():
            values[name] = Path(values[name]).name
    return values


def to_csv(runs: Sequence[LoadRun]) -> str:
    """Return CSV with a line for each request of each run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, REQUEST_FIELDS, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        level = {"concurrency": run.concurrency, "rate": run.target.plan.rate}
        writer.writerows({**level, **request_row(run, record)} for record in run.records)
    return text.getvalue()


def request_row(run: LoadRun, record: RequestRecord) -> dict[str, Any]:
    """Return the values of REQUEST_FIELDS for one request."""
    return {
        "index": record.index,
        "user": record.user,
        "turn": record.turn,
        "kind": record.kind,
        "outcome": record.outcome,
        "reason": record.reason,
        "status": record.status,
        "start_s": _round(record.start - run.start),
        "late_s": _round(record.lateness),
        "ttft_s": _round(record.ttft),
        "tpot_s": _round(record.tpot),
        "e2e_s": _round(record.e2e),
        "queue_s": _round(record.stats.queue_s),
        "tokens": record.tokens,
        "pieces": len(record.arrivals),
        "prompt_tokens": record.stats.prompt_tokens,
        "cached_tokens": record.stats.cached_tokens,
        "wire_bytes": record.wire_bytes,
    }


def environment() -> dict[str, Any]:
    """Describe the load generator's machine."""
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
