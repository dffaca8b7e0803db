"""What the pages name is there, and what is there is named."""

from __future__ import annotations

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
from aiochatstream import ChatStream, MemoryConversationStore
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
"""What each page is in Japanese."""
PAGES = [ROOT / "README.md", ROOT / "README_ja.md", *sorted(DOCS.rglob("*.md"))]

CODE_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def extras() -> list[str]:
    """Return the extras for users in setup.cfg."""
    metadata = ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    return [extra for extra in metadata["options.extras_require"] if extra not in ("dev", "docs")]


def options_of(command: str) -> list[str]:
    """The options of ``aiochatstream command``."""
    commands = next(action for action in build_parser()._actions if action.choices and command in action.choices)
    parser: Any = commands.choices[command]  # type: ignore[index]
    return [action.option_strings[-1] for action in parser._actions if action.option_strings and action.dest != "help"]


@pytest.mark.parametrize("folder", [DOCS, DOCS / "ja"], ids=["en", "ja"])
@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("index.md", extras()),
        ("options.md", list(inspect.signature(ChatStream).parameters)),
        ("endpoints.md", [api.path for api in ENDPOINTS.values()]),
        ("endpoints.md", list(ParamOverrides.model_fields)),
        ("roles.md", list(AUTH_METHODS)),
        ("command.md", [*options_of("serve"), *options_of("chat"), *COMMANDS]),
    ],
)
def test_everything_there_is_has_its_place(folder: Path, page: str, names: list[str]) -> None:
    text = (folder / page).read_text()
    assert [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)] == []


def test_every_page_is_there_in_both_languages() -> None:
    assert set((DOCS / "ja").glob("*.md")) | {ROOT / "README_ja.md"} == set(JAPANESE.values())


@pytest.mark.parametrize("page", JAPANESE, ids=lambda page: page.name)
def test_the_japanese_page_has_the_sections_rows_and_code_of_the_english_one(page: Path) -> None:
    english, japanese = page.read_text(), JAPANESE[page].read_text()
    assert layout(japanese) == layout(english)
    assert code_blocks(japanese) == code_blocks(english)
    assert names(english) - names(japanese) == set()


def layout(text: str) -> list[str]:
    """The headings, each as its level, and the rows of tables between them."""
    return re.findall(r"^(?:#+ |\|)", CODE_BLOCK.sub("", text), re.MULTILINE)


def code_blocks(text: str) -> list[str]:
    """Without their comments, which are in the page's language."""
    return [re.sub(r"\s*#.*", "", block) for block in CODE_BLOCK.findall(text)]


def names(text: str) -> set[str]:
    """What is written as code within sentences."""
    return {" ".join(name.split()) for name in re.findall(r"`([^`]+)`", CODE_BLOCK.sub("", text))}


@pytest.mark.parametrize(
    ("page", "least"),
    [("migrating.md", 13), ("ja/migrating.md", 13), ("security.md", 60), ("ja/security.md", 60)],
)
def test_a_page_names_tests_that_there_are(page: str, least: int) -> None:
    named = re.findall(r"`(test_\w+)`", (DOCS / page).read_text())
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > least
    assert [name for name in named if f"def {name}(" not in tests] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link:
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text()), link


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings of a page, and what is set by hand."""
    headings = re.findall(r"^#+ (.*)$", CODE_BLOCK.sub("", text), re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)"', text))


def test_the_architecture_names_paths_that_exist_and_every_folder() -> None:
    named = set(re.findall(r"`([\w.]+(?:/[\w.]*)+|\w+\.py)`", (DOCS / "architecture.md").read_text()))
    package = ROOT / "aiochatstream"
    assert {path for path in named if not ((package / path).exists() or (ROOT / path).exists())} == set()
    modules = {path.parent.relative_to(package) for path in package.rglob("*.py")} | {Path("page")}
    assert {Path(path) for path in named if path.endswith("/")} >= modules


def test_the_newest_version_of_the_changelog_is_the_packages() -> None:
    newest = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == aiochatstream.__version__


@pytest.mark.parametrize("page", ["deployment.md", "engines.md", "endpoints.md", "roles.md", "sessions.md"])
def test_the_examples_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
