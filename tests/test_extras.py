from __future__ import annotations

import importlib
import subprocess
import sys
from configparser import ConfigParser

import pytest

from aiochatstream.extras import MissingExtra, install_command, requires_extra
from aiochatstream.prompts.template_traits import refusals, template_errors
from tests.processes import PYTHON, ROOT

LIGHT = """
import sys
import aiochatstream.cli.main
print(*{"jinja2", "llguidance", "numpy", "prompt_toolkit", "redis", "rich", "tokenizers", "torch", "transformers"}
    & set(sys.modules))
"""


def test_a_missing_package_is_an_error_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra) as raised, requires_extra("transformers"):
        importlib.import_module("torch")
    assert str(raised.value) == f"The package torch is missing. Install it with: {install_command('transformers')}"
    assert raised.value.name == "torch"


def test_other_errors_of_an_import_are_not_changed() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"aiochatstream\.nothing"), requires_extra("chat"):
        importlib.import_module("aiochatstream.nothing")
    with pytest.raises(ImportError, match="circular"), requires_extra("chat"):
        raise ImportError("circular")


def test_every_extra_that_an_error_names_is_in_the_metadata() -> None:
    metadata = ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    assert {"chat", "constrained", "redis", "transformers"} <= set(metadata["options.extras_require"])
    assert install_command("chat") == "pip install 'aiochatstream[chat]'"


def test_the_command_starts_without_the_packages_of_extras() -> None:
    assert subprocess.run([PYTHON, "-c", LIGHT], capture_output=True, text=True, check=True).stdout == "\n"


def test_without_jinja2_no_template_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [error.__module__ for error in template_errors()] == ["jinja2.exceptions"]
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert template_errors() == ()
    assert ValueError in refusals()
