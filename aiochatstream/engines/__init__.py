"""Engines that generate text."""

from aiochatstream.engines.base import Delta, Engine, FinishReason, Prompt, StepKind, TokenLogprob, ToolCall
from aiochatstream.engines.function import FunctionEngine, TextFunction
from aiochatstream.engines.recording import RecordingEngine, ReplayEngine
from aiochatstream.engines.scripted import ScriptedEngine
from aiochatstream.engines.stream import DeltaStream
from aiochatstream.engines.token_bytes import TokenBytes
from aiochatstream.engines.token_sampler import TokenSampler

__all__ = [
    "Delta",
    "DeltaStream",
    "Engine",
    "FinishReason",
    "FunctionEngine",
    "Prompt",
    "RecordingEngine",
    "ReplayEngine",
    "ScriptedEngine",
    "StepKind",
    "TextFunction",
    "TokenBytes",
    "TokenLogprob",
    "TokenSampler",
    "ToolCall",
]
