"""Parameters of a load test and their validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from yarl import URL

ProtocolName = Literal["sse", "text", "openai", "chatstream"]
GOODPUT_METRICS = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Parameters of a load test. Times in seconds, goodput limits in milliseconds; None if not set.

    Raise ValueError with a sentence for values that conflict.
    """

    url: str
    protocol: ProtocolName = "sse"
    model: str | None = None
    concurrency: int | None = None
    sweep: tuple[int, ...] = ()
    rate: float | None = None
    burstiness: float | None = None
    requests: int | None = None
    duration: float | None = None
    warmup: int = 0
    turns: int = 1
    prompts: str = "mixed"
    max_tokens: int | None = None
    temperature: float | None = None
    ignore_eos: bool = False
    abort_fraction: float = 0.0
    slow_readers: float = 0.0
    goodput: tuple[tuple[str, float], ...] = ()
    timeout: float = 300.0
    tokenizer: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    extra_body: dict[str, Any]
    seed: int = 0
    json: Path | None = None
    csv: Path | None = None
    html: Path | None = None

    def __post_init__(self) -> None:
        _check_url(self.url)
        self._check_load()
        self._check_protocol()
        if self.abort_fraction + self.slow_readers > 1:
            raise ValueError("--abort-fraction and --slow-readers must not exceed 1 together.")
        for file in (self.json, self.csv, self.html):
            if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
                raise ValueError(f"{file} cannot be written: it is a folder, or its folder is missing.")

    def _check_load(self) -> None:
        if self.rate is not None and (self.concurrency is not None or self.sweep):
            raise ValueError(
                "--rate (open loop: requests are sent on a schedule) excludes --concurrency and --sweep (closed loop: "
                "each user waits for its answer)."
            )
        if self.sweep and self.concurrency is not None:
            raise ValueError("--sweep and --concurrency exclude each other.")
        if self.burstiness is not None and self.rate is None:
            raise ValueError("--burstiness requires --rate (open loop).")

    def _check_protocol(self) -> None:
        if self.protocol == "chatstream":
            fixed = {"max-tokens": self.max_tokens, "temperature": self.temperature, "ignore-eos": self.ignore_eos}
            for option, value in fixed.items():
                if value:
                    raise ValueError(f"--{option} cannot be used with --protocol chatstream.")
        if self.model is not None and self.protocol != "openai":
            raise ValueError("--model requires --protocol openai: other servers have one model.")

    @property
    def levels(self) -> tuple[int | None, ...]:
        """Concurrency of each run; None for the open loop."""
        if self.rate is not None:
            return (None,)
        return self.sweep or (self.concurrency or 1,)

    def requests_at(self, level: int | None) -> int | None:
        """Return the maximum number of requests of a run; None if only its duration ends it."""
        if self.requests is not None or self.duration is not None:
            return self.requests
        return 32 if level is None else max(16, 4 * level)


def _check_url(text: str) -> None:
    try:
        url = URL(text)
        valid = url.scheme in ("http", "https") and bool(url.host)
        secret = url.raw_user is not None or url.raw_password is not None
    except ValueError:
        valid = secret = False
    if secret:  # the message must not contain it
        raise ValueError("Reports contain the URL: send user name and password in a header instead (--header).")
    if not valid:
        raise ValueError(f"{text!r} is not a URL of a server, for example http://127.0.0.1:8080.")
