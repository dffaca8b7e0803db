"""Pydantic models of request bodies and query strings."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from aiochatstream.conversations.export import ExportedConversation
from aiochatstream.params import STRICT, Flag, ParamOverrides, TopK, TopP, bool_from_text, int_from_text
from aiochatstream.runtime.turn_request import TurnRequest

MAX_FORM_BYTES = 16 << 10

ConversationName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="a name of 1 to 64 of the characters A-Z a-z 0-9 - _")
]

TurnNumber = Annotated[
    int, Field(ge=0, le=2**63 - 1, description="the turn number of the conversation, a whole number from 0")
]


class ConversationRef(BaseModel):
    """A reference to one of the user's conversations."""

    model_config = STRICT

    conversation: ConversationName = "main"


class HistoryQuery(ConversationRef):
    """The query of ``GET /history``."""

    abandon_lost: Annotated[Flag, BeforeValidator(bool_from_text)] = False


class DeleteMessageQuery(ConversationRef):
    """The query of ``DELETE /history/{message_id}``."""

    if_turn: Annotated[TurnNumber, BeforeValidator(int_from_text)] | None = None


class ImportRequest(ExportedConversation, ConversationRef):
    """The body of ``POST /import``."""

    if_turn: TurnNumber | None = None


class CommitRequest(BaseModel):
    """The body of ``POST /commit``."""

    model_config = STRICT

    commit: Annotated[str, Field(description="the commit token of a stream's last event, a string")]


def _check_size(value: Any) -> Any:
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
    form_data: Annotated[Any, AfterValidator(_check_size)] = None


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
    def message(self) -> str | None:
        """The user's new message; None for a regeneration or a continuation."""
        return None if self.regenerate or self.continues else self.user_input

    @property
    def turn_request(self) -> TurnRequest:
        """The request to the conversation."""
        return TurnRequest(self.message, self.edit_message_id, self.continues, self.if_turn)

    @model_validator(mode="after")
    def _check_combination(self) -> ChatRequest:
        if self.regenerate and self.continues:
            raise ValueError("continue: cannot be true together with regenerate")
        if (self.regenerate or self.continues) and self.edit_message_id is not None:
            flag = "regenerate" if self.regenerate else "continue"
            raise ValueError(f"edit_message_id: must be used with user_input, not with {flag}")
        if not (self.regenerate or self.continues) and not (self.user_input or "").strip():
            raise ValueError("user_input: must be a string that is not empty, unless regenerate or continue is true")
        return self


class GenerationParamsChange(ParamOverrides):
    """The body of ``POST /set_generation_params``. Absent parameters do not change; null restores the server's value.

    top_k_value, top_p_value: chatstream's names of top_k and top_p.
    """

    top_k_value: TopK | None = None
    top_p_value: TopP | None = None

    @model_validator(mode="after")
    def _check_synonyms(self) -> GenerationParamsChange:
        for name in ("top_k", "top_p"):
            if {name, f"{name}_value"} <= self.model_fields_set:
                raise ValueError(f"{name}_value: cannot be used together with {name}, its other name")
        return self

    def changes(self) -> dict[str, Any]:
        """Return the parameters in the body, including null, under the names of :class:`ParamOverrides`."""
        return {name.removesuffix("_value"): getattr(self, name) for name in self.model_fields_set}
