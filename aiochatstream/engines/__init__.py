"""Engines that generate text."""

from aiochatstream.engines.base import (
    AsyncEngine,
    BaseEngine,
    Delta,
    Engine,
    FinishReason,
    Prompt,
    StepKind,
    TokenLogprob,
    ToolCall,
)
from aiochatstream.engines.function import AsyncFunctionEngine, AsyncTextFunction, FunctionEngine, TextFunction
from aiochatstream.engines.recording import RecordingEngine, ReplayEngine
from aiochatstream.engines.scripted import ScriptedEngine
from aiochatstream.engines.stream import AnswerStream, AsyncDeltaStream, DeltaStream, OnDelta
from aiochatstream.engines.token_bytes import TokenBytes
from aiochatstream.engines.token_sampler import TokenSampler

__all__ = [
    "AnswerStream",
    "AsyncDeltaStream",
    "AsyncEngine",
    "AsyncFunctionEngine",
    "AsyncTextFunction",
    "BaseEngine",
    "Delta",
    "DeltaStream",
    "Engine",
    "FinishReason",
    "FunctionEngine",
    "OnDelta",
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
