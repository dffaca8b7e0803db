"""The sdist and the wheel in dist/: their files, their metadata, and a server from the wheel without extras.

`make dist` runs this file. It is not part of `make test`, because it requires a built package and the package index.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from packaging.metadata import Metadata

from aiochatstream import __version__
from aiochatstream.web.page_files import CONTENT_TYPES, INDEX
from tests.processes import ROOT, ask, running

DIST = ROOT / "dist"
SDIST = DIST / f"aiochatstream-{__version__}.tar.gz"
WHEEL = DIST / f"aiochatstream-{__version__}-py3-none-any.whl"

NOT_IN_SDIST = (".ci/", ".gitattributes", ".gitignore", ".pre-commit-config.yaml")
"""Files that are of use in a repository only."""

NOT_IN_WHEEL = ("*.d.ts", "page/package.json", "vendor/SHA256SUMS", "vendor/vendor.sh")
"""Files of the package for those who develop the page."""

NEED_EXTRAS = (
    "aiochatstream.console.",
    "aiochatstream.conversations.redis_",
    "aiochatstream.engines.transformers",
    "aiochatstream.runtime.redis_admission",
    "aiochatstream.runtime.shared_queue",
    "aiochatstream.sessions.redis_",
)
"""Prefixes of modules that cannot be imported without an extra."""

IMPORT_ALL = """
import importlib, json, pkgutil
import aiochatstream
failed = []
for module in pkgutil.walk_packages(aiochatstream.__path__, "aiochatstream."):
    if module.name != "aiochatstream.__main__":
        try:
            importlib.import_module(module.name)
        except ImportError:
            failed.append(module.name)
print(json.dumps({"file": aiochatstream.__file__, "failed": failed}))
"""


@pytest.fixture(scope="session")
def repository() -> set[str]:
    """The names of the repository's files."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.splitlines() if (ROOT / name).exists()}


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts' folder of an environment with the wheel and its dependencies, without extras."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    scripts = folder / "bin"
    install: list[str | Path] = [
        scripts / "python",
        "-I",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    subprocess.run([*install, "--constraint", ROOT / "constraints.txt", WHEEL], check=True)
    return scripts


def wheel_files() -> set[str]:
    return set(zipfile.ZipFile(WHEEL).namelist())


def test_the_sdist_contains_the_repository(repository: set[str]) -> None:
    with tarfile.open(SDIST) as archive:
        files = {name.partition("/")[2] for name in archive.getnames() if not archive.getmember(name).isdir()}
    generated = {name for name in files if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    assert files - generated == {name for name in repository if not name.startswith(NOT_IN_SDIST)} - {"setup.cfg"}


def test_the_wheel_contains_the_package(repository: set[str]) -> None:
    files = {name for name in wheel_files() if ".dist-info/" not in name}
    package = {name for name in repository if name.startswith("aiochatstream/")}
    assert files == {name for name in package if not any(PurePosixPath(name).match(end) for end in NOT_IN_WHEEL)}


def test_the_wheel_contains_all_licences(repository: set[str]) -> None:
    licences = {name for name in repository if PurePosixPath(name).name.startswith("LICENSE")}
    assert len(licences) == 4
    assert {name.partition("/licenses/")[2] for name in wheel_files()} - {""} == licences


def test_the_metadata_is_valid() -> None:
    text = zipfile.ZipFile(WHEEL).read(f"aiochatstream-{__version__}.dist-info/METADATA")
    metadata = Metadata.from_email(text, validate=True)
    assert str(metadata.version) == __version__
    assert metadata.description_content_type == "text/markdown"
    assert metadata.license_expression == "Apache-2.0 AND BSD-3-Clause AND MIT"


def test_modules_that_need_no_extra_can_be_imported(environment: Path) -> None:
    command: list[str | Path] = [environment / "python", "-I", "-c", IMPORT_ALL]
    imported = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert Path(imported["file"]).is_relative_to(environment.parent)
    assert [name for name in imported["failed"] if not name.startswith(NEED_EXTRAS)] == []


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["serve", "--port", "0"], "transformers"),
        (["chat"], "chat"),
        (["serve", "--port", "0", "--session", "redis", "--redis", "redis://x"], "redis"),
    ],
)
def test_a_missing_extra_is_an_error_with_the_command_that_installs_it(
    environment: Path, tmp_path: Path, arguments: list[str], extra: str
) -> None:
    with running(
        [f"{environment}/aiochatstream", *arguments], tmp_path, cwd=tmp_path, env={"PYTHONPATH": ""}
    ) as process:
        assert process.wait_ended() == 2
        assert process.err.splitlines()[-1].endswith(f" Install it with: pip install 'aiochatstream[{extra}]'")
        assert "Traceback" not in process.err


def test_a_mock_answer_and_the_chat_page_are_served(environment: Path, repository: set[str], tmp_path: Path) -> None:
    command = [f"{environment}/aiochatstream", "serve", "--mock", "echo", "--port", "0"]
    with running(command, tmp_path, cwd=tmp_path, env={"PYTHONPATH": ""}) as process:
        url = process.wait_for(lambda: re.search(r"^Ready on (http://\S+)$", process.out, re.MULTILINE), "address")[1]
        assert ask(f"{url}/chat_stream", {"user_input": "Say 東京 to me."}).text == "Say 東京 to me."
        index = ask(f"{url}/").text
        version = re.search(r'src="(page/\w+)/js/main\.js"', index)
        assert version, index
        page = {name for name in repository if name.startswith("aiochatstream/page/")}
        for name in sorted(name for name in page if name.endswith(tuple(CONTENT_TYPES)) and not name.endswith(INDEX)):
            path = name.removeprefix("aiochatstream/page/")
            assert ask(f"{url}/{version[1]}/{path}").text == (ROOT / name).read_text(), name
        for path in ("docs", "openapi.json", "metrics", "readyz", "v1/models"):
            assert ask(f"{url}/{path}").status == 200, path
        assert process.end() == 0
        assert "Traceback" not in process.err
