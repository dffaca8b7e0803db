"""bench/browser.py's results: what the chat page costs its reader."""

from __future__ import annotations

from page.section import Report, Section, spread

TITLE = "The chat page in a browser"

FIGURES = {
    "prepaint_ms": ("first contentful paint, ms", 0),
    "first_bytes": ("over the wire at the first visit, bytes", 0),
    "first_requests": ("in so many requests", 0),
    "again_bytes": ("over the wire at the second, bytes", 0),
    "again_requests": ("in so many requests", 0),
    "answer_s": ("the answer, s", 1),
    "long_tasks": ("tasks of 50 ms or more meanwhile", 0),
    "longest_task_ms": ("the longest, ms", 0),
    "long_tasks_cpu": ("tasks of 50 ms or more of CPU time", 0),
    "longest_task_ms_cpu": ("the longest, ms of CPU time", 0),
    "late_bytes": ("loaded for the answer (the highlighter), bytes", 0),
    "show_10_ms": ("until 10 turns are shown, ms", 0),
    "show_500_ms": ("until 500 turns are shown, ms", 0),
    "show_1500_ms": ("until 1,500 turns are shown, ms", 0),
    "change_10_cpu_ms": ("one more message after 10 turns, ms of CPU time", 0),
    "change_500_cpu_ms": ("one more message after 500 turns, ms of CPU time", 0),
    "change_1500_cpu_ms": ("one more message after 1,500 turns, ms of CPU time", 0),
}
"""How a round's figures are called, and their digits. One that is not here is shown by its own name."""


def write(section: Section, report: Report) -> None:
    section.say(
        "Headless Chromium and a server without a model, on one machine. The answer is Markdown with headings, lists, "
        "tables and code, which comes faster than people read. `python bench/browser.py --help` defines every figure."
    )
    section.circumstances(report)
    rounds = report["rounds"]
    rows = []
    for name in rounds[0]:
        title, digits = FIGURES.get(name, (name, 1))
        rows.append((title, spread([one[name] for one in rounds], digits)))
    section.table(("figure", "median (least-most)"), rows)
