"""Tests of the errors of loading, with a server in place of the HuggingFace Hub."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from aiochatstream.engines.load_options import LoadOptions
from aiochatstream.engines.transformers import loading
from aiochatstream.engines.transformers.load_errors import explain_load_errors
from aiochatstream.extras import MissingExtra
from tests.engines.transformers.checkpoints import edit_json, save_model
from tests.processes import free_port

RESPONSES = {
    "missing": (404, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "revised": (404, "RevisionNotFound"),
}
"""Status and error code of the Hub for the models in the test."""


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, code = next((RESPONSES[name] for name in RESPONSES if name in self.path), (404, ""))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815 - the name in http.server

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name in http.server
        pass


def use_hub(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        use_hub(monkeypatch, server.server_port)
        yield
        server.shutdown()
        thread.join()


HUB_ERRORS = [
    ("some/missing", None, FileNotFoundError, "There is no model some/missing, neither as a folder nor on"),
    ("some/gated", None, PermissionError, "some/gated requires consent to its license: accept it on"),
    ("some/revised", "v9", ValueError, "revision: some/revised has no branch, tag or commit v9."),
    ("some/long/name", None, FileNotFoundError, "There is no model some/long/name"),
]


@pytest.mark.parametrize(("source", "revision", "kind", "sentence"), HUB_ERRORS)
def test_errors_of_the_hub_are_one_sentence(
    hub: None, source: str, revision: str | None, kind: type[Exception], sentence: str
) -> None:
    for load in loading.loaders(source, LoadOptions(revision=revision)):
        with pytest.raises(kind, match=f"^{re.escape(sentence)}") as error:
            load()
        assert "\n" not in str(error.value)


def test_without_a_network_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    use_hub(monkeypatch, free_port())
    for load in loading.loaders("some/model"):
        with pytest.raises(OSError, match=r"^some/model is not in the cache folder, and huggingface\.co cannot be"):
            load()


def test_a_revision_of_a_folder_is_an_error(tmp_path: Path) -> None:
    save_model(tmp_path)
    with pytest.raises(ValueError, match=r"^revision: must be absent for a folder or file, such as /"):
        loading.loaders(str(tmp_path), LoadOptions(revision="v1"))


def test_code_of_a_model_runs_only_if_it_is_allowed(tmp_path: Path) -> None:
    save_model(tmp_path)
    edit_json(
        tmp_path / "config.json",
        model_type="own-model",
        auto_map={"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"},
    )
    (tmp_path / "own_code.py").write_text(
        "from transformers import Qwen2Config, Qwen2ForCausalLM\n"
        "class OwnConfig(Qwen2Config):\n    model_type = 'own-model'\n"
        "class OwnModel(Qwen2ForCausalLM):\n    config_class = OwnConfig\n"
    )
    load, _ = loading.loaders(str(tmp_path), LoadOptions(device="cpu"))
    with pytest.raises(
        ValueError, match=r"contains Python code\. Review the code, and allow it with trust_remote_code"
    ):
        load()
    load, _ = loading.loaders(str(tmp_path), LoadOptions(device="cpu", trust_remote_code=True))
    assert type(load()).__name__ == "OwnModel"


def test_unknown_architectures_are_one_sentence(tmp_path: Path) -> None:
    edit_json(tmp_path / "config.json", model_type="future")
    load, _ = loading.loaders(str(tmp_path), LoadOptions(device="cpu"))
    with pytest.raises(ValueError, match=r"has the model type future, which the installed transformers does not supp"):
        load()
    edit_json(tmp_path / "config.json", model_type="t5")
    with pytest.raises(ValueError, match=r"cannot be loaded: .*T5Config") as error:
        load()
    assert "\n" not in str(error.value)


def test_a_folder_without_weights_is_one_sentence(tmp_path: Path) -> None:
    edit_json(tmp_path / "config.json", model_type="qwen2")
    load, _ = loading.loaders(str(tmp_path), LoadOptions(device="cpu"))
    with pytest.raises(OSError, match=r"cannot be loaded: .*model\.safetensors") as error:
        load()
    assert "\n" not in str(error.value)


def test_a_missing_package_of_a_model_is_a_missing_extra() -> None:
    with (
        pytest.raises(MissingExtra, match=r"^m cannot be loaded: needs x\. Run pip install x$"),
        explain_load_errors("m"),
    ):
        raise ImportError("needs x.\nRun pip install x")


@pytest.mark.parametrize("error", [RuntimeError("one\ntwo"), OSError(28, "No space left on device", "file")])
def test_other_errors_are_not_changed(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, explain_load_errors("m"):
        raise error
    assert raised.value is error
