"""Files of recorded answers: JSON lines. The first line is the prompt with its parameters, the others are deltas."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aiochatstream.engines.base import Delta, FinishReason, ToolCall
from aiochatstream.params import GenerationParams

SUFFIX = ".jsonl"

EXACT = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="forbid")


@dataclass(frozen=True, slots=True)
class Recording:
    """One answer. ``steps`` are its deltas, each with the seconds since the answer started."""

    messages: list[dict[str, str]]
    token_ids: list[int]
    params: GenerationParams
    steps: list[tuple[float, Delta]]

    @property
    def finish_reason(self) -> FinishReason:
        """The last delta's finish reason; ``cancelled`` if there is none."""
        return next((delta.finish_reason for _, delta in self.steps if delta.finish_reason is not None), "cancelled")


class Header(BaseModel):
    """The first line."""

    model_config = EXACT

    format: Literal["aiochatstream recording 1"] = "aiochatstream recording 1"
    finish_reason: FinishReason
    deltas: Annotated[int, Field(ge=0)]
    params: GenerationParams
    messages: list[dict[str, str]]
    token_ids: list[int]


class RecordedDelta(BaseModel):
    """A delta and its time. Fields with default values are omitted from the file."""

    model_config = EXACT

    seconds: Annotated[float, Field(ge=0)]
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    prompt_tokens: int = 0
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    thinking_tokens: int = 0
    tokens: int = 0

    def delta(self) -> Delta:
        return Delta(**{name: value for name, value in self if name != "seconds"})


def new_file_name() -> str:
    """Return a unique name that sorts by time, also among several processes."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}{SUFFIX}"


def write(recording: Recording, path: Path) -> None:
    """Write the file atomically, readable only by its owner. Raise OSError."""
    header = Header(
        finish_reason=recording.finish_reason,
        deltas=len(recording.steps),
        params=recording.params,
        messages=recording.messages,
        token_ids=recording.token_ids,
    )
    lines = [header.model_dump_json()]
    for seconds, delta in recording.steps:
        fields = {name: getattr(delta, name) for name in RecordedDelta.model_fields if name != "seconds"}
        line = RecordedDelta(seconds=round(seconds, 6), **fields)
        lines.append(line.model_dump_json(exclude_defaults=True))
    data = "".join(f"{line}\n" for line in lines).encode()
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path) -> Recording:
    """Read a file that :func:`write` has written.

    Raise ValueError that names the file and the first invalid line.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a recording: it is not a file.")
    first, *rest = path.read_bytes().split(b"\n")
    steps: list[tuple[float, Delta]] = []
    number = 1
    try:
        header = Header.model_validate_json(first)
        for line in rest[:-1]:
            number += 1
            recorded = RecordedDelta.model_validate_json(line)
            steps.append((recorded.seconds, recorded.delta()))
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)[0]
        location = ".".join([f"line {number}", *map(str, details["loc"])])
        raise ValueError(f"{path} is damaged or not a recording: {location}: {details['msg']}.") from None
    recording = Recording(header.messages, header.token_ids, header.params, steps)
    if rest[-1:] != [b""] or (len(steps), recording.finish_reason) != (header.deltas, header.finish_reason):
        raise ValueError(
            f"{path} is damaged: it does not contain the {header.deltas} deltas that its header specifies."
        )
    return recording


def read_all(folder: Path) -> list[Recording]:
    """Return the recordings of a folder, oldest first. Hidden files are ignored.

    Raise ValueError if the folder is missing or empty, or if a file is not a recording.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    recordings = [read(path) for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    if not recordings:
        raise ValueError(f"There are no recordings in {folder}.")
    return recordings
