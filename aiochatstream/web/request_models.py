"""What requests may say, and reading it from them."""

from __future__ import annotations

import codecs
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from aiohttp import web
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import from_json

from aiochatstream.conversations.conversation import MAX_CHARS, MAX_TURNS
from aiochatstream.conversations.export import Saved
from aiochatstream.errors import BadRequest, InvalidValue, TooLarge, UnsupportedMediaType
from aiochatstream.params import STRICT, Flag, ParamOverrides, TopK, TopP, describe, flag_of_text, number_of_text
from aiochatstream.runtime.turn_request import Ask
from aiochatstream.web.json import dumps

if TYPE_CHECKING:
    from aiochatstream.chat_stream import ChatStream

MAX_FORM_BYTES = 16 << 10

STRUCTURE = b"{}[],:"

MAX_IMPORT_STRUCTURE = MAX_CHARS + 2 * MAX_TURNS * 16
"""As many of these as the texts and the fields of an export can have."""

MAX_IMPORT_BYTES = 12 * MAX_CHARS + 2 * MAX_TURNS * 512
"""The length of an export whose characters are all outside the Basic Multilingual Plane, and escaped."""

ConversationName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="a name of 1 to 64 of the characters A-Z a-z 0-9 - _")
]

TurnNumber = Annotated[
    int, Field(ge=0, le=2**63 - 1, description="the turn number of the conversation, a whole number from 0")
]


class ConversationRef(BaseModel):
    """Which of the user's conversations is meant."""

    model_config = STRICT

    conversation: ConversationName = "main"


class HistoryQuery(ConversationRef):
    """The query of ``GET /history``."""

    abandon_lost: Annotated[Flag, BeforeValidator(flag_of_text)] = False


class HistoryChange(ConversationRef):
    """The query of ``DELETE /history/{message_id}``."""

    if_turn: Annotated[TurnNumber, BeforeValidator(number_of_text)] | None = None


class ImportRequest(Saved, ConversationRef):
    """The body of ``POST /import``."""

    if_turn: TurnNumber | None = None


class CommitRequest(BaseModel):
    """The body of ``POST /commit``."""

    model_config = STRICT

    commit: Annotated[str, Field(description="the commit token of a stream's last event, a string")]


def _short(value: Any) -> Any:
    try:
        size = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode(errors="surrogatepass"))
    except ValueError:
        raise ValueError("must be JSON with finite numbers only") from None
    if size > MAX_FORM_BYTES:
        raise ValueError(f"must be at most {MAX_FORM_BYTES} bytes of JSON")
    return value


class FeedbackRequest(ConversationRef):
    """The body of ``POST /set_feedback``."""

    message_id: Annotated[str, Field(description="the message id of an answer, a string")]
    is_like: Annotated[bool, Field(description="true, false or null")] | None = None
    form_data: Annotated[Any, AfterValidator(_short)] = None


class ChatRequest(ConversationRef):
    """The body of ``POST /chat_stream``."""

    user_input: Annotated[str, Field(description="a string")] | None = None
    regenerate: Flag = False
    continues: Annotated[Flag, Field(alias="continue")] = False
    edit_message_id: Annotated[str, Field(description="the message id of an answer, a string")] | None = None
    if_turn: TurnNumber | None = None
    abandon_lost: Flag = False
    system: Annotated[str, Field(max_length=10_000, description="a string of at most 10000 characters")] | None = None
    params: ParamOverrides | None = None

    @property
    def says(self) -> str | None:
        """What the user says; None where nothing new is said."""
        return None if self.regenerate or self.continues else self.user_input

    @property
    def ask(self) -> Ask:
        """What is wanted of the conversation."""
        return Ask(self.says, self.edit_message_id, self.continues, self.if_turn)

    @model_validator(mode="after")
    def _ask_one_thing(self) -> ChatRequest:
        again = [name for name, asked in (("regenerate", self.regenerate), ("continue", self.continues)) if asked]
        if len(again) > 1:
            raise ValueError("continue: cannot be true together with regenerate")
        if again and self.edit_message_id is not None:
            raise ValueError(f"edit_message_id: goes with user_input, not with {again[0]}")
        if not again and not (self.user_input or "").strip():
            raise ValueError("user_input: must be a string that is not empty, unless regenerate or continue is true")
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


async def read_body(server: ChatStream, request: web.Request, schema: type[Schema]) -> Schema:
    """The request's JSON body, validated; no body at all is an empty object.

    Its maximum length is the server's or the application's, whichever is less.

    Raises InvalidValue, and as :meth:`Uploads.read`.
    """
    max_bytes = min(server.limits.max_request_bytes, request.client_max_size or sys.maxsize)
    return parse_body(request, await server.uploads.read(request, max_bytes), schema)


async def read_import(server: ChatStream, request: web.Request) -> ImportRequest:
    """The body of ``POST /import``, which may be as long as what ``GET /export`` can send, however it is escaped.

    Raises as :func:`read_body`.
    """
    body = await server.uploads.read(request, MAX_IMPORT_BYTES)
    if len(body) - len(body.translate(None, STRUCTURE)) > MAX_IMPORT_STRUCTURE:  # to parse that takes seconds
        raise TooLarge(f"The body is too large: at most {MAX_IMPORT_STRUCTURE} of {STRUCTURE.decode()} are read.")
    return parse_body(request, body, ImportRequest)


def parse_body(request: web.Request, body: bytes, schema: type[Schema]) -> Schema:
    """``body`` as ``request`` says that it is. Raises BadRequest, UnsupportedMediaType or InvalidValue."""
    if body and request.content_type != "application/json":
        raise UnsupportedMediaType(f"The body must be application/json, not {request.content_type}.")
    return _parse(body, schema)


def read_given_body(given: dict[str, Any] | bytes, schema: type[Schema], *, max_bytes: int) -> Schema:
    """What the app has read of the request itself: taken as JSON (again), so that the very same holds for it.

    Raises BadRequest, TooLarge or InvalidValue.
    """
    try:
        body = given if isinstance(given, bytes) else dumps(given).encode(errors="surrogatepass")
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest("request_body: must be bytes, or a dict of what JSON can hold.") from error
    if len(body) > max_bytes:
        raise TooLarge(f"The body is too large: at most {max_bytes} bytes are read.")
    return _parse(body, schema)


def _parse(body: bytes, schema: type[Schema]) -> Schema:
    body = body.removeprefix(codecs.BOM_UTF8)  # RFC 8259 lets a BOM be ignored
    try:
        parsed = schema.model_validate_json(body or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise BadRequest(f"The body is not JSON: {first['ctx']['error']}.") from None
        if first["type"] == "model_type" and not first["loc"]:
            raise InvalidValue("The body must be a JSON object.") from None
        raise InvalidValue(describe(error, schema)) from None
    if b"NaN" in body or b"Infinity" in body:  # in a text, or in a field of any type, where pydantic takes them
        try:
            from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise BadRequest(f"The body is not JSON: {error}.") from None
    return parsed


def read_query(request: web.Request, schema: type[Schema]) -> Schema:
    """The request's query parameters, validated. Raises InvalidValue."""
    try:
        return schema.model_validate(dict(request.query))
    except ValidationError as error:
        raise InvalidValue(describe(error, schema)) from None
