"""Whether a grammar can be made ready in reasonable time, tried in a process of its own.

What some JSON schemas say takes years to work out (a string of several patterns at once; 700 characters are enough),
and llguidance has no limit for it. A thread in it could not be stopped; a process can. It imports nothing of this
package, and takes a tokenizer of 256 bytes: what takes so long is the same for all.
"""

from __future__ import annotations

import subprocess
import sys

CPU_SECONDS = 2
"""What a grammar may take. Of the processor, so that a busy machine refuses no others."""

LEXER_FUEL = 300_000
"""How much llguidance may make of a grammar at its beginning: so much takes a second, and 50 MB, of which there are as
many as there are grammars kept. 20,000 strings to choose from are less."""

PATIENCE = 60.0
"""Seconds until that must have been spent, however busy the machine is."""


def ends(grammar: str) -> bool:
    """Whether llguidance comes to an end with ``grammar``, be it that it refuses it. Blocks for a moment."""
    trial = [sys.executable, "-P", __file__]
    try:
        tried = subprocess.run(trial, input=grammar.encode(), capture_output=True, timeout=PATIENCE, check=False)  # noqa: S603 - ourselves
    except subprocess.TimeoutExpired:
        return False
    return tried.returncode >= 0  # below, a signal has ended it


def main() -> None:
    """Try the grammar on the standard input."""
    import resource

    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    limits = LLParserLimits(initial_lexer_fuel=LEXER_FUEL)
    LLMatcher(LLTokenizer("byte"), sys.stdin.buffer.read().decode(), log_level=0, limits=limits).compute_bitmask()


if __name__ == "__main__":
    main()
