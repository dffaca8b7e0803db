"""Tests of the validation of options for loading."""

from __future__ import annotations

from typing import Any

import pytest

from aiochatstream.engines.load_options import LoadOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype: must be auto, float32, float16 or bfloat16, not int8."),
        ({"quantize": "int4"}, "quantize: must be int8, not int4."),
        (
            {"quantize": "int8", "device_map": "auto"},
            "quantize: must be absent with device_map, which distributes the layers.",
        ),
        ({"device_map": "cpu"}, "device_map: must be auto, balanced, balanced_low_0 or sequential, not cpu."),
        (
            {"device_map": "auto", "device": "cuda"},
            "device: must be auto with device_map, which places the layers, not cuda.",
        ),
    ],
)
def test_invalid_options_are_an_error_with_the_choices(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[dq]") as error:
        LoadOptions(**options)
    assert str(error.value) == message


def test_a_device_map_is_accepted_with_the_default_device() -> None:
    assert LoadOptions(device_map="balanced", device="auto").device_map == "balanced"
