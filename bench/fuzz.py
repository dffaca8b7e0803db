"""Search for inputs that break a promise of the server: malformed requests, schemas, Markdown, cookies, imports.

    make fuzz                                              # 10 minutes, divided among the targets
    python bench/fuzz.py schemas cookies --seconds 60 --seed 7

Each target runs in its own process, so that a crash is also a finding. The exit code is 1 if there are findings.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import subprocess
import sys
from dataclasses import asdict

import fuzz_targets
from fuzz_targets import Findings

GRACE_SECONDS = 120
"""Seconds that a target may take longer than its share before it counts as hung."""


def main() -> int:
    names = sorted(module.name for module in pkgutil.iter_modules(fuzz_targets.__path__))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(names))
    parser.add_argument("--seconds", type=float, default=600.0, help="seconds for all targets together (default 600)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first round (default 0)")
    parser.add_argument("--in-process", action="store_true", help="run one target here and print its findings as JSON")
    options = parser.parse_args()
    targets = options.targets or names
    if options.in_process:
        print(json.dumps(asdict(run_in_process(targets[0], options.seconds, options.seed))))
        return 0
    findings = {name: run_in_child(name, options.seconds / len(targets), options.seed) for name in targets}
    for name, result in findings.items():
        print(f"{name}: {result.tried} inputs, {len(result.faults)} findings")
        for fault in result.faults:
            print(f"  {fault}")
    return int(any(result.faults for result in findings.values()))


def run_in_process(name: str, seconds: float, seed: int) -> Findings:
    """Run the target ``name`` in this process."""
    result: Findings = importlib.import_module(f"fuzz_targets.{name}").fuzz(seconds, seed)
    return result


def run_in_child(name: str, seconds: float, seed: int) -> Findings:
    """Run the target ``name`` in a child process. If the process crashes or hangs, this is a finding."""
    command = [sys.executable, __file__, name, "--in-process", "--seconds", str(seconds), "--seed", str(seed)]
    try:
        child = subprocess.run(  # noqa: S603 - this script
            command, stdout=subprocess.PIPE, text=True, timeout=seconds + GRACE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Findings(faults=[f"hung for {GRACE_SECONDS} s after its time, seed {seed}"])
    if child.returncode:
        return Findings(faults=[f"exited with code {child.returncode}, seed {seed}"])
    return Findings(**json.loads(child.stdout.splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
