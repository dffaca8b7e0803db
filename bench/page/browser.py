"""Section of bench/browser.py: the cost of the chat page in a browser."""

from __future__ import annotations

from page.section import Report, Section, format_spread

TITLE = "The chat page in a browser"

FIGURES = {
    "first_paint_ms": ("first contentful paint, ms", 0),
    "first_bytes": ("transferred on the first visit, bytes", 0),
    "first_requests": ("requests on the first visit", 0),
    "again_bytes": ("transferred on the second visit, bytes", 0),
    "again_requests": ("requests on the second visit", 0),
    "answer_s": ("duration of the answer, s", 1),
    "long_tasks": ("tasks of 50 ms or more during the answer", 0),
    "longest_task_ms": ("longest task, ms", 0),
    "long_tasks_cpu": ("tasks of 50 ms or more of CPU time", 0),
    "longest_task_ms_cpu": ("longest task, ms of CPU time", 0),
    "late_bytes": ("loaded for the answer (the highlighter), bytes", 0),
    "show_10_ms": ("showing 10 turns, ms", 0),
    "show_500_ms": ("showing 500 turns, ms", 0),
    "show_1500_ms": ("showing 1,500 turns, ms", 0),
    "change_10_cpu_ms": ("one more message after 10 turns, ms of CPU time", 0),
    "change_500_cpu_ms": ("one more message after 500 turns, ms of CPU time", 0),
    "change_1500_cpu_ms": ("one more message after 1,500 turns, ms of CPU time", 0),
}
"""Title and digits of each figure. Other figures are shown by their own names."""


def write(section: Section, report: Report) -> None:
    section.paragraph(
        "Headless Chromium and a server without a model, on one machine. The answer is Markdown with headings, lists, "
        "tables and code, generated faster than people read. `python bench/browser.py --help` defines the figures."
    )
    section.setup(report)
    rounds = report["rounds"]
    rows = []
    for name in rounds[0]:
        title, digits = FIGURES.get(name, (name, 1))
        rows.append((title, format_spread([figures[name] for figures in rounds], digits)))
    section.table(("figure", "median (min-max)"), rows)
