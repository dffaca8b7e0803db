"""Errors for options that earlier versions and chatstream 0.3.0 have in the constructor, with their new places."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

from aiochatstream.params import ANSWER_PARAMS, GenerationParams, Limits

Parameters = ParamSpec("Parameters")

COMPAT = "is an option of aiochatstream.compat.ChatStream only"

MOVED = {
    **{name: f"is part of limits now: ChatStream(limits=Limits({name}=...))" for name in Limits.model_fields},
    **{
        name: f"is part of params now: ChatStream(params=GenerationParams({name}=...))"
        for name in GenerationParams.model_fields
        if name not in ANSWER_PARAMS
    },
    "add_special_tokens": "is an attribute of the prompt class now: ChatStream(chat_prompt_clazz=...)",
    "mock_params": "is an engine now: ChatStream(engine=ScriptedEngine(type=..., time_per_token_sec=...))",
    "num_gpus": COMPAT,
    "on_feedback_received": "is on_feedback now: ChatStream(on_feedback=...)",
    "probe_mode_enabled": f"{COMPAT}; see also ChatStream(engine=RecordingEngine(engine, folder))",
    "record": "is an engine now: ChatStream(engine=RecordingEngine(TransformersEngine(model, tokenizer), folder))",
    "request_handler": "is conversation_store now: ChatStream(conversation_store=...)",
    "token_sampler": "is part of the engine now: ChatStream(engine=TransformersEngine(..., token_sampler=...))",
    "too_many_request_as_http_error": f"{COMPAT}; see also ChatStream(limits=Limits(overload_status=429))",
    "use_mock_response": "is an engine now: ChatStream(engine=ScriptedEngine())",
}
"""New place of each option, as the rest of a sentence that begins with its name."""


def explain_moved_options(init: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Decorate a constructor: raise TypeError with the new place for an option that has moved.

    The constructor keeps its signature, for ``help()`` and type checkers.
    """

    @functools.wraps(init)
    def checked_init(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        for name in kwargs:
            if name in MOVED:
                raise TypeError(f"{name}: {MOVED[name]}.")
        init(*args, **kwargs)

    return checked_init
