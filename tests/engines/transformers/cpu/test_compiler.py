"""Tests of compiled libraries and their cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiochatstream.engines.transformers.cpu import compiler
from aiochatstream.engines.transformers.cpu.compiler import compile_library

CODE = """
#include "offset.h"
extern "C" int add(int number) { return number + OFFSET; }
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Code with a header, and an empty cache folder."""
    monkeypatch.setattr(compiler, "user_cache_path", lambda name: tmp_path / "cache")
    (tmp_path / "offset.h").write_text("#ifndef OFFSET\n#define OFFSET 1\n#endif\n")
    source = tmp_path / "code.cpp"
    source.write_text(CODE)
    return source


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "code").glob("*"))


@pytest.mark.slow
def test_code_is_compiled_once_for_each_source_header_and_option(source: Path, tmp_path: Path) -> None:
    assert compile_library(source).add(5) == 6
    assert compile_library(source, ["-DOFFSET=2"]).add(5) == 7
    assert [file.suffix for file in cached(tmp_path)] == [".so", ".so"]
    before = {file: file.stat().st_mtime_ns for file in cached(tmp_path)}
    assert compile_library(source).add(5) == 6
    assert {file: file.stat().st_mtime_ns for file in cached(tmp_path)} == before
    (tmp_path / "offset.h").write_text("#define OFFSET 3\n")
    assert compile_library(source).add(5) == 8
    source.write_text(CODE.replace("+", "-"))
    assert compile_library(source).add(5) == 2
    assert len(cached(tmp_path)) == 4


@pytest.mark.slow
def test_a_damaged_file_is_compiled_again(source: Path, tmp_path: Path) -> None:
    compile_library(source)
    (file,) = cached(tmp_path)
    file.unlink()  # a library that is loaded must not be overwritten
    file.write_bytes(b"damaged")
    assert compile_library(source).add(5) == 6


@pytest.mark.slow
def test_without_a_cache_folder_code_is_compiled_all_the_same(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    assert compile_library(source).add(5) == 6


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["cache", "cache/code"])
def test_a_folder_that_others_can_write_to_is_not_used(source: Path, tmp_path: Path, shared: str) -> None:
    compile_library(source)
    (file,) = cached(tmp_path)
    file.unlink()
    (tmp_path / shared).chmod(0o777)
    assert compile_library(source).add(5) == 6
    assert cached(tmp_path) == []


@pytest.mark.slow
def test_a_folder_in_one_that_the_users_group_can_write_to_is_used(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o775)  # umask 002 is the default of some systems
    assert compile_library(source).add(5) == 6
    assert len(cached(tmp_path)) == 1


@pytest.mark.slow
def test_a_relative_folder_is_not_used(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compiler, "user_cache_path", lambda name: Path("~/.cache"))
    assert compile_library(source).add(5) == 6
    assert not (tmp_path / "~").exists()


@pytest.mark.slow
def test_a_compiler_with_options_is_called_with_them(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ -DOFFSET=4")
    assert compile_library(source).add(5) == 9


@pytest.mark.slow
def test_a_failure_is_an_error_and_leaves_no_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="nothing"):
        compile_library(source, ["-DOFFSET=nothing"])
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(OSError, match=r"/nowhere/c\+\+"):
        compile_library(source)
    assert cached(tmp_path) == []
