"""Response templates of model families whose checkpoints have none."""

from __future__ import annotations

from typing import Any


def find_response_template(model_type: str, tokenizer: Any) -> dict[str, Any] | None:
    """Return the response template for a model; None if no template of the table fits."""
    return None
