"""Section of bench/quality.py: the distributions of a model in other precisions."""

from __future__ import annotations

from page.section import Report, Section

TITLE = "Quality of int8 and bfloat16"


FIGURES = {
    "kl_mean": ("KL mean", 4),
    "kl_p99": ("KL p99", 3),
    "same_top": ("same most likely token", 3),
    "nll": ("negative log likelihood", 3),
}
"""Title and digits of each figure."""


def write(section: Section, report: Report) -> None:
    section.paragraph(
        "The next-token distributions of a model after each token of four texts (English prose, a licence, Python "
        "code, Japanese prose), compared with those of the same model in float32. `python bench/quality.py --help` "
        "defines the figures."
    )
    section.setup(report)
    results = report["results"]
    rows = []
    for result in results:
        figures = [(result[name], digits) for name, (_, digits) in FIGURES.items()]
        rows.append(
            [result["precision"], *("" if value is None else f"{value:.{digits}f}" for value, digits in figures)]
        )
    section.table(["precision", *(title for title, _ in FIGURES.values())], rows)
    section.paragraph("Greedy answers:")
    answers = [
        [question, *(" ".join(result["answers"][at].split()) for result in results)]
        for at, question in enumerate(report["questions"])
    ]
    section.table(["question", *(result["precision"] for result in results)], answers, names=len(results) + 1)
