"""Runs of the scripts in bench/, as by a user."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import PYTHON, ROOT, finish

PATIENCE = 240.0


@dataclass(frozen=True)
class ScriptRun:
    """Result of a script: exit code, output and its JSON file (empty if there is none)."""

    code: int
    out: str
    err: str
    json: dict[str, Any]


def run(script: str, folder: Path, *options: str, forked: bool = False) -> ScriptRun:
    """Run ``python bench/SCRIPT OPTIONS --json ...`` to its end."""
    file = folder / "results.json"
    command = [PYTHON, str(ROOT / "bench" / script), *options, "--json", str(file)]
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    finished = finish(command, env=env, forked=forked, patience=PATIENCE)
    report = json.loads(file.read_text()) if file.exists() else {}
    return ScriptRun(finished.returncode, finished.stdout, finished.stderr, report)
