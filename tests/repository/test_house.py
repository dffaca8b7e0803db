"""The rules of the house: import floors, no circles, docstrings of a reference manual, tests that mirror modules."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

import aiochatstream
from aiochatstream import ChatStream

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "aiochatstream"
TESTS = ROOT / "tests"

FLOORS = {
    name: floor
    for floor, names in enumerate(
        (
            "errors texts sse terminal validation extras",
            "constraint progress",
            "params",
            "conversations engines",
            "prompts",
            "runtime",
            "sessions",
            "web engine_choice moved_options",
            "chat_stream",
            "compat models",
            "bench console",
            "cli",
            "ray __main__",
        )
    )
    for name in names.split()
}
"""Floor of each folder and of each module at the top. Imports point down, or stay inside a folder."""

FORBIDDEN = {
    "aiochatstream.engines": {"aiohttp", "aiohttp_session", "cryptography", "redis", "torch", "transformers"},
    "aiochatstream.conversations": {"aiohttp", "aiohttp_session", "cryptography", "redis", "torch", "transformers"},
    "aiochatstream.prompts": {"aiohttp", "aiohttp_session", "cryptography", "torch", "transformers"},
    "aiochatstream.runtime.chat": {"aiohttp", "aiohttp_session", "cryptography", "torch", "transformers"},
    "aiochatstream.runtime.stateless": {"aiohttp", "aiohttp_session", "cryptography", "torch", "transformers"},
    "aiochatstream.sessions": {"torch", "transformers"},
    "aiochatstream.chat_stream": {"torch", "transformers"},
    "aiochatstream.engines.transformers": {"aiohttp", "aiohttp_session", "cryptography"},
}
"""Packages that importing a module must not import."""

OPENERS = re.compile(r"(What|Who|Whose|Whom|Where|Whether|Which|How|When|Why|That|Those|Ours|As)\b(?!ever\b.*:)")

BAD_WORDS = (
    r"\bis none of\b",
    r"\bare none of\b",
    r"\bis let\b",
    r"\bare let\b",
    r"\bbut for\b",
    r"\bfor ever\b",
    r"\bunder way\b",
    r"\bof ours\b",
    r"\bof theirs\b",
    r"\bfor want of\b",
    r"\bwhoever\b",
    r"\bwho asks\b",
    r"\bthe greatest\b",
    r"\bfor longest\b",
    r"\bis to be had\b",
    r"\bthere is to\b",
    r"\bsee to it\b",
    r"\bis no number\b",
    r", say[.,)]",
)
"""The worst words of docstrings, comments and messages: each one has a plain word in the field's English."""

BAD_NAMES = {"told", "asked", "kept", "given", "found", "begun", "wanted", "meant", "said", "taken", "one"}
"""Participles, and a pronoun: no names for variables, parameters, functions or attributes."""


class Module(NamedTuple):
    name: str
    path: Path

    @property
    def place(self) -> str:
        """The path in the repository."""
        return str(self.path.relative_to(ROOT))


@dataclass
class Contents:
    """The parts of a module that tests compare. (All syntax trees together need 150 MB.)

    docstrings: line and text of each docstring, those after assignments too.
    names: line and name of each definition, parameter and assignment.
    """

    text: str
    imports: set[str] = field(default_factory=set)
    docstrings: list[tuple[int, str]] = field(default_factory=list)
    names: list[tuple[int, str]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)


def modules_of(folder: Path) -> list[Module]:
    modules = []
    for path in sorted(folder.rglob("*.py")):
        if "node_modules" in path.parts:
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules.append(Module(name, path))
    return modules


MODULES = modules_of(PACKAGE)
NAMES = {module.name for module in MODULES}
ALL_MODULES = [*MODULES, *modules_of(TESTS), *modules_of(ROOT / "bench"), *modules_of(ROOT / "examples")]


@functools.cache
def contents_of(module: Module) -> Contents:
    contents = Contents(module.path.read_text())
    tree = ast.parse(contents.text)
    contents.classes += [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in ast.walk(tree):
        contents.imports |= imports_of(node)
        contents.docstrings += docstrings_of(node)
        contents.names += [(node.lineno, name) for name in names_of(node)]  # type: ignore[attr-defined]
    return contents


def imports_of(node: ast.AST) -> set[str]:
    """Return the modules of the package that a statement imports, also for type checkers only."""
    if isinstance(node, ast.ImportFrom) and node.module is not None:
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        return names & NAMES | ({node.module} & NAMES if names - NAMES else set())
    return {alias.name for alias in node.names} & NAMES if isinstance(node, ast.Import) else set()


def docstrings_of(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the docstring of a definition, and those of the assignments in it."""
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return
    if text := ast.get_docstring(node):
        yield getattr(node, "lineno", 1), text
    for before, after in zip(node.body, node.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if is_text and isinstance(before, ast.Assign | ast.AnnAssign):
            yield after.lineno, str(after.value.value)  # type: ignore[attr-defined]


def names_of(node: ast.AST) -> list[str]:
    """Return the name that a node defines or assigns."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    return [node.attr] if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) else []


def room_of(name: str) -> str:
    """Return the folder or the top-level module of the module ``name``."""
    return name.split(".")[1]


def test_imports_point_down() -> None:
    climbs = []
    for module in MODULES[1:]:  # not aiochatstream/__init__.py, which names all public objects
        here = room_of(module.name)
        for imported in contents_of(module).imports - {module.name, "aiochatstream"}:
            there = room_of(imported)
            if here != there and FLOORS[there] >= FLOORS[here]:
                climbs.append(f"{module.name} -> {imported}")
    assert climbs == []


def test_no_modules_import_each_other() -> None:
    arrows = {
        module.name: contents_of(module).imports - {module.name} for module in MODULES if module.name != "aiochatstream"
    }
    while True:
        leaves = {name for name, imported in arrows.items() if not imported & arrows.keys()}
        if not leaves:
            break
        arrows = {name: imported for name, imported in arrows.items() if name not in leaves}
    assert sorted(arrows) == [], "these import each other, or are imported by those that do"


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_floor_imports_only_the_packages_that_it_needs(name: str) -> None:
    code = f"import json, sys, {name}; print(json.dumps([*sys.modules]))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    packages = {module.partition(".")[0] for module in json.loads(output)}
    assert packages & FORBIDDEN[name] == set()


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    bad = [
        f"{module.place}:{line}: {text.splitlines()[0]}"
        for module in ALL_MODULES
        for line, text in contents_of(module).docstrings
        if OPENERS.match(text)
    ]
    assert bad == []


@pytest.mark.parametrize("words", BAD_WORDS)
def test_sentences_have_no_words_that_need_a_second_reading(words: str) -> None:
    pattern = re.compile(words)
    pages = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
    hits = []
    texts = {module.place: contents_of(module).text for module in ALL_MODULES if module.path != Path(__file__)}
    for place, text in {**texts, **{str(page.relative_to(ROOT)): page.read_text() for page in pages}}.items():
        if pattern.search(text):
            hits += [f"{place}:{at}: {line}" for at, line in enumerate(text.splitlines(), 1) if pattern.search(line)]
    assert hits == []


def test_names_are_nouns_and_verbs() -> None:
    bad = [
        f"{module.place}:{line}: {name}"
        for module in ALL_MODULES
        for line, name in contents_of(module).names
        if name.strip("_") in BAD_NAMES
    ]
    assert bad == []


def test_a_name_belongs_to_one_class() -> None:
    places: dict[str, list[str]] = {}
    for module in MODULES:
        if not module.name.startswith("aiochatstream.compat"):  # which repeats names
            for name in contents_of(module).classes:
                places.setdefault(name, []).append(module.name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("name", list(aiochatstream._MODULES))
def test_public_names_are_documented(name: str) -> None:
    public = getattr(aiochatstream, name)
    if inspect.isfunction(public):
        assert public.__doc__
    if not inspect.isclass(public):
        return  # a function, or an alias of a type
    assert public.__doc__
    for attribute, value in vars(public).items():
        if inspect.isfunction(value) and not attribute.startswith("_"):
            documented = any(getattr(vars(base).get(attribute), "__doc__", None) for base in inspect.getmro(public))
            implements = inspect.getmro(public)[-2].__module__.startswith("aiohttp_session")  # which has no docstrings
            assert documented or implements, f"{name}.{attribute} has no docstring"


def test_tests_mirror_modules() -> None:
    strays = []
    for path in sorted(TESTS.rglob("test_*.py")):
        folder = path.parent.relative_to(TESTS)
        if "node_modules" in path.parts or folder.parts[:1] in [("integration",), ("repository",), ("page",)]:
            continue
        topic = path.stem.removeprefix("test_")
        home = PACKAGE / folder
        known = {module.stem for module in home.glob("*.py")} | {
            inner.name for inner in home.iterdir() if inner.is_dir()
        }
        if folder.parts[:1] == ("bench",):
            known |= {script.stem for script in (ROOT / "bench").glob("*.py")}
        if not any(topic == name or topic.startswith(f"{name}_") for name in known):
            strays.append(str(path.relative_to(ROOT)))
    assert strays == [], "name each test_MODULE.py or test_MODULE_topic.py"


def test_the_constructor_has_at_most_25_parameters() -> None:
    assert len(inspect.signature(ChatStream).parameters) <= 25
