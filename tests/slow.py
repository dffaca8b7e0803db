"""The marker ``slow``, for tests that use a model, a browser or another program.

A test is slow if its code, or the code of its fixtures or helpers, refers to one of :data:`LIBRARIES` or
:data:`FUNCTIONS`. Tests in which the package itself starts a program set the marker. Any other test that starts a
program fails, so ``-m "not slow"`` never starts one.
"""

from __future__ import annotations

import functools
import inspect
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

LIBRARIES = {"multiprocessing", "playwright", "subprocess", "transformers"}

FUNCTIONS = {"create_subprocess_exec", "create_subprocess_shell", "fork"}

_running: pytest.Item | None = None


def pytest_configure(config: pytest.Config) -> None:
    """Check each start of a program. (An audit hook sees more ways to start one, and slows all tests by a fifth.)"""
    start = subprocess.Popen.__init__

    @functools.wraps(start)
    def checked_start(self: subprocess.Popen[Any], args: Any, *options: Any, **named_options: Any) -> None:
        if _running is not None and _running.get_closest_marker("slow") is None:
            pytest.fail(f"a program starts: mark the test as slow ({args!r})")
        start(self, args, *options, **named_options)

    subprocess.Popen.__init__ = checked_start  # type: ignore[method-assign]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if any(_is_slow(function) for function in _functions(item)):
            item.add_marker("slow")
    if hasattr(config, "workerinput"):
        _sort_by_slowness(items)


def _sort_by_slowness(items: list[pytest.Item]) -> None:
    """Sort files by their share of slow tests: the quick ones, last, leave none of pytest-xdist's workers idle."""
    slow, total = Counter[Path](), Counter[Path]()
    for item in items:
        slow[item.path] += item.get_closest_marker("slow") is not None
        total[item.path] += 1
    items.sort(key=lambda item: -slow[item.path] / total[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    global _running
    _running = item
    try:
        return (yield)
    finally:
        _running = None


def _functions(item: pytest.Item) -> Iterator[FunctionType]:
    """Yield the functions of a test and of its fixtures."""
    if isinstance(item, pytest.Function):
        yield inspect.unwrap(item.function)
        for definitions in item._fixtureinfo.name2fixturedefs.values():
            yield from (inspect.unwrap(definition.func) for definition in definitions)


@functools.cache
def _is_slow(function: FunctionType) -> bool:
    """Return True if the code of ``function``, or of a helper it refers to, refers to a slow library."""
    seen: set[int] = set()
    remaining: list[Any] = [function]
    while remaining:
        reference = remaining.pop()
        if id(reference) in seen:
            continue
        seen.add(id(reference))
        module = (
            reference.__name__ if isinstance(reference, ModuleType) else getattr(reference, "__module__", None) or ""
        )
        if module.partition(".")[0] in LIBRARIES:
            return True
        if not module.startswith("tests."):
            continue
        if isinstance(reference, type):
            remaining += vars(reference).values()
        elif isinstance(reference, FunctionType):
            if FUNCTIONS.intersection(_names(inspect.unwrap(reference).__code__)):
                return True
            remaining += _references(inspect.unwrap(reference))
    return False


def _references(function: FunctionType) -> Iterator[Any]:
    """Yield the global objects that ``function`` refers to, including attributes of modules of tests."""
    names = set(_names(function.__code__))
    for name in names & function.__globals__.keys():
        reference = function.__globals__[name]
        yield reference
        if isinstance(reference, ModuleType) and reference.__name__.startswith("tests."):
            yield from (value for key, value in vars(reference).items() if key in names)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
