"""The documentation: complete, equal in both languages, and with links, names and examples that work."""

from __future__ import annotations

import argparse
import inspect
import os
import re
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from cryptography.fernet import Fernet

import aiochatstream
from aiochatstream import ChatStream, GenerationParams, Limits, MemoryConversationStore, compat
from aiochatstream.cli.main import build_parser
from aiochatstream.console.console import COMMANDS
from aiochatstream.params import ParamOverrides
from aiochatstream.web.auth.roles import AUTH_METHODS
from aiochatstream.web.routes import ENDPOINTS
from tests.processes import ROOT

DOCS = ROOT / "docs"
JAPANESE = {ROOT / "README.md": ROOT / "README_ja.md"} | {
    page: DOCS / "ja" / page.name for page in sorted(DOCS.glob("*.md"))
}
"""Japanese page of each English page."""
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "README.md", ROOT / "README_ja.md", *sorted(DOCS.rglob("*.md"))]

CODE_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def extras() -> list[str]:
    """Return the extras for users in setup.cfg."""
    metadata = ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    return [extra for extra in metadata["options.extras_require"] if extra not in ("dev", "docs")]


def options_of(command: str) -> list[str]:
    """Return the options of ``aiochatstream COMMAND``."""
    commands = next(action for action in build_parser()._actions if action.choices and command in action.choices)
    parser: Any = commands.choices[command]  # type: ignore[index]
    return [
        action.option_strings[-1]
        for action in parser._actions
        if action.option_strings and action.dest != "help" and action.help != argparse.SUPPRESS
    ]


@pytest.mark.parametrize("folder", [DOCS, DOCS / "ja"], ids=["en", "ja"])
@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("index.md", extras()),
        ("options.md", list(inspect.signature(ChatStream).parameters)),
        ("options.md", [*GenerationParams.model_fields, *Limits.model_fields]),
        ("migrating.md", list(inspect.signature(compat.ChatStream).parameters)),
        ("endpoints.md", [endpoint.path for endpoint in ENDPOINTS.values()]),
        ("endpoints.md", list(ParamOverrides.model_fields)),
        ("roles.md", list(AUTH_METHODS)),
        ("command.md", [*options_of("serve"), *options_of("chat"), *COMMANDS]),
    ],
)
def test_a_page_describes_every_name(folder: Path, page: str, names: list[str]) -> None:
    text = (folder / page).read_text()
    assert [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)] == []


def test_every_page_exists_in_both_languages() -> None:
    assert set((DOCS / "ja").glob("*.md")) | {ROOT / "README_ja.md"} == set(JAPANESE.values())


@pytest.mark.parametrize("page", JAPANESE, ids=lambda page: page.name)
def test_both_languages_have_the_same_sections_rows_and_code(page: Path) -> None:
    english, japanese = page.read_text(), JAPANESE[page].read_text()
    assert layout(japanese) == layout(english)
    assert code_blocks(japanese) == code_blocks(english)
    assert names(english) - names(japanese) == set()


def layout(text: str) -> list[str]:
    """Return the levels of headings, and the rows of tables between them."""
    return re.findall(r"^(?:#+ |\|)", CODE_BLOCK.sub("", text), re.MULTILINE)


def code_blocks(text: str) -> list[str]:
    """Return the code blocks without comments, which are in the page's language."""
    return [re.sub(r"\s*#.*", "", block) for block in CODE_BLOCK.findall(text)]


def names(text: str) -> set[str]:
    """Return the inline code."""
    return {" ".join(name.split()) for name in re.findall(r"`([^`]+)`", CODE_BLOCK.sub("", text))}


@pytest.mark.parametrize(
    ("page", "minimum"),
    [("migrating.md", 13), ("ja/migrating.md", 13), ("security.md", 60), ("ja/security.md", 60)],
)
def test_tests_that_a_page_mentions_exist(page: str, minimum: int) -> None:
    mentioned = re.findall(r"`(test_\w+)`", (DOCS / page).read_text())
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert len(mentioned) > minimum
    assert [name for name in mentioned if f"def {name}(" not in tests] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_targets(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link:
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text()), link


def anchors(text: str) -> set[str]:
    """Return the anchors of a page: those that GitHub derives from headings, and explicit ones."""
    headings = re.findall(r"^#+ (.*)$", CODE_BLOCK.sub("", text), re.MULTILINE)
    derived = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return derived | set(re.findall(r'<a id="([^"]+)"', text))


def test_the_architecture_page_mentions_every_folder_and_only_paths_that_exist() -> None:
    paths = set(re.findall(r"`([\w.]+(?:/[\w.]*)+|\w+\.py)`", (DOCS / "architecture.md").read_text()))
    package = ROOT / "aiochatstream"
    assert {path for path in paths if not ((package / path).exists() or (ROOT / path).exists())} == set()
    modules = {path.parent.relative_to(package) for path in package.rglob("*.py")} | {Path("page")}
    assert {Path(path) for path in paths if path.endswith("/")} >= modules


def test_the_changelog_begins_with_the_current_version_or_what_follows_it() -> None:
    versions = re.findall(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[versions[0] == "Unreleased"] == aiochatstream.__version__


@pytest.mark.parametrize(
    "page", ["deployment.md", "engines.md", "endpoints.md", "models.md", "roles.md", "sessions.md"]
)
def test_examples_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVELOPER_PHRASE", "sesame")
    monkeypatch.setenv("MONITOR_KEY_SHA256", "0" * 64)
    monkeypatch.setenv("SECRET_KEYS", Fernet.generate_key().decode())
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        stand_ins = {name: getattr(aiochatstream, name) for name in aiochatstream.__all__}
        stand_ins |= {"aiohttp_session": aiohttp_session, "web": web, "os": os, "app": web.Application()}
        stand_ins |= {"device": "cpu", "store": MemoryConversationStore()}
        prefixes = ("", "english_", "japanese_")
        stand_ins |= {prefix + name: lambda: None for prefix in prefixes for name in ("model", "tokenizer")}
        exec(block, stand_ins | {"__name__": "docs"})  # noqa: S102
