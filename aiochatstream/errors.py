"""Everything that can be refused or go wrong, as one tree.

::

    ChatStreamError                  500 internal_server_error
    ├── BadRequest                   400 bad_request
    ├── ContextLengthExceeded        400 context_length_exceeded
    ├── Unauthorized                 401 unauthorized
    │   └── InvalidKey                   invalid_api_key
    ├── Forbidden                    403 forbidden
    ├── NotFound                     404 not_found
    │   └── ModelNotFound                model_not_found
    ├── NotRunningHere               404 not_running_here
    ├── NoRecording                  404 no_recording
    ├── MethodNotAllowed             405 method_not_allowed
    ├── RequestTimeout               408 request_timeout
    ├── ConversationBusy             409 conversation_busy
    ├── ConversationChanged          409 conversation_changed
    ├── NothingToRegenerate          409 nothing_to_regenerate
    ├── NothingToContinue            409 nothing_to_continue
    ├── AnswerElsewhere              409 answer_elsewhere
    ├── TooLarge                     413 too_large
    ├── UnsupportedMediaType         415 unsupported_media_type
    ├── InvalidValue                 422 invalid_value
    ├── TooManyAttempts              429 too_many_attempts, with Retry-After
    ├── EngineFailed                 500 internal_server_error
    ├── SessionsNotSetUp             500 internal_server_error
    └── Unavailable                  503, with Retry-After
        ├── TooManyRequests              too_many_requests
        ├── Starting                     starting
        │   └── LoadFailed                   starting
        ├── Draining                     draining
        ├── EngineStopped                engine_stopped
        └── StoreUnavailable             store_unavailable

Each class knows its HTTP status and its code on the wire. ``web`` turns them into responses in one place.
"""

from __future__ import annotations

from typing import ClassVar


class ChatStreamError(Exception):
    """Root of the tree. ``detail`` is one clear sentence for the client.

    retry_after: in how many whole seconds it may go better; None where time alone does not help.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_server_error"
    retry_after: int | None = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadRequest(ChatStreamError):
    """The request is malformed."""

    status = 400
    code = "bad_request"


class ContextLengthExceeded(ChatStreamError):
    """The prompt that a client gives whole is too long. (A conversation of ours is cut to fit.)"""

    status = 400
    code = "context_length_exceeded"


class Unauthorized(ChatStreamError):
    """This client does not say who it is, or says it wrongly."""

    status = 401
    code = "unauthorized"


class InvalidKey(Unauthorized):
    """There is no API key, or a wrong one."""

    code = "invalid_api_key"


class Forbidden(ChatStreamError):
    """This client may not call this."""

    status = 403
    code = "forbidden"


class NotFound(ChatStreamError):
    """There is nothing at this path."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """The model that is asked for is not the one that is served here."""

    code = "model_not_found"


class NotRunningHere(ChatStreamError):
    """No answer of this conversation is running in this process."""

    status = 404
    code = "not_running_here"


class NoRecording(ChatStreamError):
    """Recorded answers are played back, and there is none to this prompt."""

    status = 404
    code = "no_recording"


class MethodNotAllowed(ChatStreamError):
    """The path exists, but not with this method."""

    status = 405
    code = "method_not_allowed"


class RequestTimeout(ChatStreamError):
    """The body does not arrive in time."""

    status = 408
    code = "request_timeout"


class ConversationBusy(ChatStreamError):
    """An answer of this conversation is running."""

    status = 409
    code = "conversation_busy"
    retry_after = 1


class ConversationChanged(ChatStreamError):
    """The conversation is not the one that this turn began from, or that the client has seen."""

    status = 409
    code = "conversation_changed"


class NothingToRegenerate(ChatStreamError):
    """There is no message to answer again."""

    status = 409
    code = "nothing_to_regenerate"


class NothingToContinue(ChatStreamError):
    """The last answer is not an interrupted one."""

    status = 409
    code = "nothing_to_continue"


class AnswerElsewhere(ChatStreamError):
    """The last answer is held by another worker process."""

    status = 409
    code = "answer_elsewhere"


class TooLarge(ChatStreamError):
    """The body, or the newest message, is longer than the limit."""

    status = 413
    code = "too_large"


class UnsupportedMediaType(ChatStreamError):
    """The body is not JSON."""

    status = 415
    code = "unsupported_media_type"


class InvalidValue(ChatStreamError):
    """A field has the wrong type or is out of range."""

    status = 422
    code = "invalid_value"


class TooManyAttempts(ChatStreamError):
    """Too many wrong phrases from one address."""

    status = 429
    code = "too_many_attempts"
    retry_after = 60


class EngineFailed(ChatStreamError):
    """The engine raised; a conversation is as it was before the turn."""


class SessionsNotSetUp(ChatStreamError):
    """aiohttp-session's middleware is missing."""


class Unavailable(ChatStreamError):
    """Not now."""

    status = 503

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class TooManyRequests(Unavailable):
    """Every slot and every place in the queue is taken, or too many bodies arrive at once."""

    code = "too_many_requests"


class Starting(Unavailable):
    """The model is being loaded."""

    code = "starting"


class LoadFailed(Starting):
    """The model could not be loaded, and will not be in this process."""


class Draining(Unavailable):
    """The server is shutting down."""

    code = "draining"


class EngineStopped(Unavailable):
    """The engine's thread has ended by an error, and makes no more answers in this process."""

    code = "engine_stopped"


class StoreUnavailable(Unavailable):
    """Where conversations or sessions are kept cannot be reached."""

    code = "store_unavailable"
