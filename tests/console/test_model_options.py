"""Tests of the options that specify how to load a model."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from aiochatstream.console import model_options
from aiochatstream.engines.load_options import LoadOptions
from aiochatstream.texts import EN, JA


def parse(arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    model_options.add_arguments(parser)
    return parser.parse_args(arguments.split())


def test_absent_options_have_the_defaults_and_are_no_attributes() -> None:
    options = parse("")
    assert vars(options) == {}
    assert model_options.load_options(vars(options)) == LoadOptions()


def test_every_option_reaches_its_field() -> None:
    options = parse("--dtype float16 --device-map auto --revision v1 --trust-remote-code --adapter folder/lora")
    assert model_options.load_options(vars(options)) == LoadOptions(
        dtype="float16", device_map="auto", revision="v1", trust_remote_code=True, adapter=Path("folder/lora")
    )
    assert model_options.load_options(vars(parse("--device cuda:1"))) == LoadOptions(device="cuda:1")
    assert model_options.load_options(vars(parse("--quantize int8"))) == LoadOptions(quantize="int8")


@pytest.mark.parametrize("arguments", ["--device-map cpu", "--dtype int8", "--quantize int4"])
def test_unknown_choices_are_refused(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(arguments)
    assert "invalid choice" in capsys.readouterr().err


def test_a_gguf_file_has_a_size_on_the_disk_and_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes(2_500_000))
    assert model_options.describe_weights(str(file), "10.1 MB", EN) == "dequantised: 2.50 MB on disk, 10.1 MB in memory"
    assert "2.50 MB" in model_options.describe_weights(str(file), "10.1 MB", JA)
    assert model_options.describe_weights("some/model", "10.1 MB", EN) == "10.1 MB"
