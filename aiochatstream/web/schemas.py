"""What requests may say, and reading it from them."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel, Field, ValidationError, model_validator

from aiochatstream.errors import BadRequest, InvalidValue, TooLarge, UnsupportedMediaType
from aiochatstream.params import STRICT, ParamOverrides, TopK, TopP, describe
from aiochatstream.web.json import dumps

ConversationName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="a name of 1 to 64 of the characters A-Z a-z 0-9 - _")
]

NOT_YET = ("edit_message_id", "continue", "if_turn")
"""Fields of the protocol that this version does not know. They change what is asked, so they are never ignored."""


class ConversationRef(BaseModel):
    """Which of the user's conversations is meant."""

    model_config = STRICT

    conversation: ConversationName = "main"


class FeedbackRequest(ConversationRef):
    """The body of ``POST /set_feedback``."""

    message_id: Annotated[str, Field(description="the message id of an answer, a string")]
    is_like: Annotated[bool, Field(description="true, false or null")] | None = None
    form_data: Any = None


class ChatRequest(ConversationRef):
    """The body of ``POST /chat_stream``."""

    user_input: Annotated[str, Field(description="a string")] | None = None
    regenerate: Annotated[bool, Field(description="true or false")] = False
    system: Annotated[str, Field(max_length=10_000, description="a string of at most 10000 characters")] | None = None
    params: ParamOverrides | None = None

    @property
    def message(self) -> str | None:
        """What is to be answered; None for the last message again."""
        return None if self.regenerate else self.user_input

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_meaning(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for field in NOT_YET:
                if data.get(field) is not None:
                    raise ValueError(f"{field}: is not supported by this version of the server")
        return data

    @model_validator(mode="after")
    def _need_something_to_answer(self) -> ChatRequest:
        if not self.regenerate and not (self.user_input or "").strip():
            raise ValueError("user_input: must be a string that is not empty, unless regenerate is true")
        return self


class GenerationParamsChange(ParamOverrides):
    """The body of ``POST /set_generation_params``: what is absent stays, null goes back to the server's own value.

    top_k_value, top_p_value: chatstream's names of top_k and top_p.
    """

    top_k_value: TopK | None = None
    top_p_value: TopP | None = None

    @model_validator(mode="after")
    def _one_name_for_one_thing(self) -> GenerationParamsChange:
        for name in ("top_k", "top_p"):
            if {name, f"{name}_value"} <= self.model_fields_set:
                raise ValueError(f"{name}_value: is another name of {name}; give one of the two")
        return self

    def changes(self) -> dict[str, Any]:
        """What is said, None too, under the names of :class:`ParamOverrides`."""
        return {name.removesuffix("_value"): getattr(self, name) for name in self.model_fields_set}


Schema = TypeVar("Schema", bound=BaseModel)


async def read_body(request: web.Request, schema: type[Schema], *, max_bytes: int) -> Schema:
    """The request's JSON body, validated; no body at all is an empty object.

    Raises BadRequest, TooLarge, UnsupportedMediaType or InvalidValue.
    """
    too_large = _too_large(max_bytes)
    if (request.content_length or 0) > max_bytes:
        raise too_large
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise too_large from error
    except (HttpProcessingError, web.RequestPayloadError) as error:
        raise BadRequest("The body does not arrive as its headers say.") from error
    if len(body) > max_bytes:
        raise too_large
    if body and request.content_type != "application/json":
        raise UnsupportedMediaType(f"The body must be application/json, not {request.content_type}.")
    return _parse(body or b"{}", schema)


def read_given_body(given: dict[str, Any] | bytes, schema: type[Schema], *, max_bytes: int) -> Schema:
    """What the app has read of the request itself: taken as JSON (again), so that the very same holds for it.

    Raises BadRequest, TooLarge or InvalidValue.
    """
    try:
        body = given if isinstance(given, bytes) else dumps(given).encode(errors="surrogatepass")
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest("request_body: must be bytes, or a dict of what JSON can hold.") from error
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    return _parse(body, schema)


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The body is too large: at most {max_bytes} bytes are read.")


def _parse(body: bytes, schema: type[Schema]) -> Schema:
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        if error.errors(include_url=False, include_context=False)[0]["type"] == "json_invalid":
            raise BadRequest(f"The body is not JSON: {describe(error, schema)}") from None
        raise InvalidValue(describe(error, schema)) from None


def read_query(request: web.Request, schema: type[Schema]) -> Schema:
    """The request's query parameters, validated. Raises InvalidValue."""
    try:
        return schema.model_validate(dict(request.query))
    except ValidationError as error:
        raise InvalidValue(describe(error, schema)) from None
