"""The scripts in bench/, run as a user runs them."""

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
class Ran:
    code: int
    out: str
    err: str
    json: dict[str, Any]


def run(script: str, folder: Path, *options: str) -> Ran:
    """``python bench/SCRIPT OPTIONS --json ...``, to its end."""
    file = folder / "results.json"
    done = subprocess.run(
        [PYTHON, str(ROOT / "bench" / script), *options, "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    told = json.loads(file.read_text()) if file.exists() else {}
    return Ran(done.returncode, done.stdout, done.stderr, told)
