"""Errors of requests, as one class hierarchy.

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
    ├── UpstreamFailed               502 upstream_failed
    ├── LoopDetected                 508 loop_detected
    ├── SessionsNotSetUp             500 internal_server_error
    └── Unavailable                  503, with Retry-After
        ├── TooManyRequests              too_many_requests
        ├── Starting                     starting
        │   └── LoadFailed                   starting
        ├── Draining                     draining
        ├── EngineStopped                engine_stopped
        ├── UpstreamUnavailable          upstream_unavailable
        └── StoreUnavailable             store_unavailable

Each class has an HTTP status and an error code. ``web/errors.py`` turns them into responses.
"""

from __future__ import annotations

from typing import ClassVar


class ChatStreamError(Exception):
    """Base class of the errors.

    status: HTTP status.
    code: error code in responses.
    detail: a sentence for the client.
    retry_after: whole seconds after which a retry may succeed; None if a retry does not help.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_server_error"
    retry_after: int | None = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadRequest(ChatStreamError):
    """Malformed request."""

    status = 400
    code = "bad_request"


class ContextLengthExceeded(ChatStreamError):
    """A complete prompt from a client that is too long. (Stored conversations are shortened to fit.)"""

    status = 400
    code = "context_length_exceeded"


class Unauthorized(ChatStreamError):
    """Missing or invalid credentials."""

    status = 401
    code = "unauthorized"


class InvalidKey(Unauthorized):
    """Missing or invalid API key."""

    code = "invalid_api_key"


class Forbidden(ChatStreamError):
    """Request that the client's role or origin does not allow."""

    status = 403
    code = "forbidden"


class NotFound(ChatStreamError):
    """Unknown path or resource."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """Request for a model other than the server's."""

    code = "model_not_found"


class NotRunningHere(ChatStreamError):
    """Conversation without a running answer in this process."""

    status = 404
    code = "not_running_here"


class NoRecording(ChatStreamError):
    """Prompt without a recorded answer to replay."""

    status = 404
    code = "no_recording"


class MethodNotAllowed(ChatStreamError):
    """Known path with an unsupported method."""

    status = 405
    code = "method_not_allowed"


class RequestTimeout(ChatStreamError):
    """Request body that was not received in time."""

    status = 408
    code = "request_timeout"


class ConversationBusy(ChatStreamError):
    """Conversation with a running answer."""

    status = 409
    code = "conversation_busy"
    retry_after = 1


class ConversationChanged(ChatStreamError):
    """Conversation that has changed since the turn began or the client last read it."""

    status = 409
    code = "conversation_changed"


class NothingToRegenerate(ChatStreamError):
    """Conversation without a message to answer again."""

    status = 409
    code = "nothing_to_regenerate"


class NothingToContinue(ChatStreamError):
    """Conversation whose last answer was not interrupted."""

    status = 409
    code = "nothing_to_continue"


class AnswerElsewhere(ChatStreamError):
    """Conversation whose last answer is in another worker process."""

    status = 409
    code = "answer_elsewhere"


class TooLarge(ChatStreamError):
    """Request body or message that exceeds its limit."""

    status = 413
    code = "too_large"


class UnsupportedMediaType(ChatStreamError):
    """Request body that is not JSON."""

    status = 415
    code = "unsupported_media_type"


class InvalidValue(ChatStreamError):
    """Field with a wrong type or out of its range."""

    status = 422
    code = "invalid_value"


class TooManyAttempts(ChatStreamError):
    """Too many wrong pass phrases from one address."""

    status = 429
    code = "too_many_attempts"
    retry_after = 60


class EngineFailed(ChatStreamError):
    """Failed engine. What it had generated of the answer is saved as interrupted."""


class UpstreamFailed(ChatStreamError):
    """Failed server behind this one. What it had generated of the answer is saved as interrupted."""

    status = 502
    code = "upstream_failed"


class LoopDetected(ChatStreamError):
    """Request that has passed this server before, or too many servers."""

    status = 508
    code = "loop_detected"


class SessionsNotSetUp(ChatStreamError):
    """Missing middleware of aiohttp-session."""


class Unavailable(ChatStreamError):
    """Temporarily unavailable server."""

    status = 503

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class TooManyRequests(Unavailable):
    """Full queue, or too many request bodies in transfer."""

    code = "too_many_requests"


class Starting(Unavailable):
    """Model that is still loading."""

    code = "starting"


class LoadFailed(Starting):
    """Model that failed to load in this process."""


class Draining(Unavailable):
    """Server that is shutting down."""

    code = "draining"


class EngineStopped(Unavailable):
    """Engine whose thread has failed; this process generates no more answers."""

    code = "engine_stopped"


class UpstreamUnavailable(Unavailable):
    """No server behind this one that can answer at present."""

    code = "upstream_unavailable"


class StoreUnavailable(Unavailable):
    """Unreachable store of conversations or sessions."""

    code = "store_unavailable"
