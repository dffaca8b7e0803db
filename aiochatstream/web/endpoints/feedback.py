"""The endpoint for feedback on answers."""

from __future__ import annotations

import inspect

from aiohttp import web

from aiochatstream.errors import NotFound
from aiochatstream.web.errors import chatstream_endpoint
from aiochatstream.web.feedback import Feedback
from aiochatstream.web.json import json_response
from aiochatstream.web.request_models import FeedbackRequest
from aiochatstream.web.request_reading import read_body
from aiochatstream.web.server import Server


@chatstream_endpoint
async def set_feedback(server: Server, request: web.Request) -> web.StreamResponse:
    """``POST /set_feedback``: pass a user's rating of an answer to the application."""
    body = await read_body(server, request, FeedbackRequest)
    user = await server.user_session(request)
    conversation = await user.load(body.conversation)
    index = next((index for index, turn in enumerate(conversation.turns) if turn.message_id == body.message_id), None)
    if index is None:
        raise NotFound(f"message_id: the conversation {body.conversation!r} has no answer {body.message_id!r}.")
    turn = conversation.turns[index]
    callback = server.on_feedback
    if callback is not None and server.ratings.count((user.id, turn.message_id), body):
        history = conversation.drop_newest(len(conversation.turns) - index)
        try:
            feedback = Feedback(
                is_like=body.is_like,
                form_data=body.form_data,
                prompt=await server.prompt_text(history, turn.user),
                target_message_id=turn.message_id,
                target_message=turn.answer,
                generation_params=server.override(server.user_params(user)).model_dump(mode="json"),
            )
            result = callback(request, feedback)
            if inspect.isawaitable(result):
                await result
        except BaseException:
            server.ratings.forget((user.id, turn.message_id))
            raise
    return json_response({"success": True, "message": "success", "target_message_id": turn.message_id})
