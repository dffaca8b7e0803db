"""Tests of the attention function that is registered with transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from aiochatstream.engines.transformers import attention
from tests.engines.transformers.tiny_models import tiny


def attend(**options: Any) -> Any:
    """Call the attention function for one token of a layer."""
    layer = tiny("Llama", 1).model.layers[0].self_attn
    query, key = torch.zeros(1, 2, 1, 16), torch.zeros(1, 1, 1, 16)
    return ALL_ATTENTION_FUNCTIONS[attention.NAME](layer, query, key, key, None, **options)


@pytest.mark.parametrize("name", ["indices", "block_indices", "position_bias", "unknown"])
def test_options_that_packed_attention_would_ignore_are_an_error(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"^attention with {name}$"):
        attend(packed=True, **{name: torch.zeros(1)})


@pytest.mark.parametrize("options", [{}, {"dropout": 0.0, "is_causal": True, "position_ids": torch.zeros(1, 1)}])
def test_options_without_an_effect_are_ignored_but_a_step_is_required(options: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="There is no step to compute in this thread"):
        attend(packed=True, **options)


def test_attention_outside_of_the_engine_is_torchs_own_and_does_not_ignore_sinks() -> None:
    result, _ = attend()
    assert result.shape == (1, 1, 2, 16)
    with pytest.raises(NotImplementedError, match="sinks outside of the engine"):
        attend(s_aux=torch.zeros(2))
