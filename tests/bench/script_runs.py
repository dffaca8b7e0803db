"""Runs of the scripts in bench/, as by a user."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import PYTHON, ROOT

PATIENCE = 60.0


@dataclass(frozen=True)
class ScriptRun:
    """Result of a script: exit code, output and its JSON file (empty if there is none)."""

    code: int
    out: str
    err: str
    json: dict[str, Any]


def run(script: str, folder: Path, *options: str) -> ScriptRun:
    """Run ``python bench/SCRIPT OPTIONS --json ...`` to its end."""
    file = folder / "results.json"
    process = subprocess.run(
        [PYTHON, str(ROOT / "bench" / script), *options, "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    report = json.loads(file.read_text()) if file.exists() else {}
    return ScriptRun(process.returncode, process.stdout, process.stderr, report)
