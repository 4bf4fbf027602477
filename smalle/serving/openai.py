"""Requests, responses and errors of OpenAI's speech API."""

import base64
import json
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from .pool import Busy
from .voices import UploadedVoice

MODEL_NAMES = "tts-1", "tts-1-hd", "gpt-4o-mini-tts"  # names that many clients send; all mean the model of this server
VOICE_NAMES = {  # OpenAI's voices, and the presets of the default checkpoint that replace them
    "alloy": "heart",
    "ash": "fenrir",
    "ballad": "daniel",
    "cedar": "fenrir",
    "coral": "jessica",
    "echo": "fenrir",
    "fable": "daniel",
    "marin": "heart",
    "nova": "jessica",
    "onyx": "fenrir",
    "sage": "kore",
    "shimmer": "kore",
    "verse": "daniel",
}


SERVER_ERROR = "An internal error occurred; see the log of the server."


class VoiceId(BaseModel):
    """An uploaded voice."""

    id: str


class SpeechRequest(BaseModel):
    """The body of `POST /v1/audio/speech`. Other fields, such as OpenAI's `instructions`, are ignored."""

    model: str = Field(description="a model of `GET /v1/models`, or one of OpenAI's")
    input: str = Field(description="the text to speak, in English")
    voice: str | VoiceId = Field(description="name of a preset, or name or id of an uploaded voice")
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4.0, description="1: normal speed; the pitch does not change")
    stream_format: Literal["audio", "sse"] = "audio"
    stream: bool = Field(True, description="false: send one complete file; failed readings are repeated")
    timestamp_granularities: list[Literal["word"]] = Field(
        [], max_length=1, description='["word"]: events with word times; needs stream_format sse'
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="another seed gives another reading of the text")


class Voice(BaseModel):
    """A voice in OpenAI's format, also used for presets."""

    id: str
    object: Literal["audio.voice"] = "audio.voice"
    created_at: int
    name: str
    type: Literal["preset", "audio_sample"]

    @classmethod
    def of(cls, voice: UploadedVoice) -> "Voice":
        return cls(id=voice.id, created_at=voice.created_at, name=voice.name, type="audio_sample")


class Error(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """An error in OpenAI's format."""

    error: Error


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The request is invalid; the message says what to do."},
    401: {"model": ErrorAnswer, "description": "The API key is missing or wrong."},
    403: {"model": ErrorAnswer, "description": "A page of another site sent the request."},
    404: {"model": ErrorAnswer, "description": "The model or voice does not exist."},
    413: {"model": ErrorAnswer, "description": "The request is too large."},
    429: {"model": ErrorAnswer, "description": "The server is busy; the header Retry-After gives the time to wait."},
    507: {"model": ErrorAnswer, "description": "The server cannot write to its disk."},
}


class ApiError(Exception):
    """An error that is sent to the client in OpenAI's format."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def error_fields(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = {429: "rate_limit_error", 500: "server_error", 507: "server_error"}.get(status, "invalid_request_error")
    return Error(message=message, type=kind, param=param, code=code).model_dump()


def error_answer(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    return JSONResponse({"error": error_fields(status, message, param, code)}, status, headers)


async def answer_exception(_: Request, error: Exception) -> JSONResponse:
    """The response to an exception in a route."""
    match error:
        case ApiError():
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
            return error_answer(error.status, error.message, error.param, error.code, headers)
        case Busy():
            headers = {"Retry-After": str(error.retry_after)}
            return error_answer(429, str(error), None, "rate_limit_exceeded", headers)
        case RequestValidationError():
            first = error.errors()[0]
            names = [str(name) for name in first["loc"] if name != "body"]
            where = ".".join(names) or None
            return error_answer(400, f"{where or 'The request'}: {first['msg']}.", where, first["type"])
        case HTTPException():
            return error_answer(error.status_code, str(error.detail), headers=error.headers)
    return error_answer(500, SERVER_ERROR)


def event(kind: str, **fields: Any) -> bytes:
    """A server-sent event in OpenAI's format."""
    return b"data: " + json.dumps({"type": kind, **fields}).encode() + b"\n\n"


def audio_event(data: bytes) -> bytes:
    return event("speech.audio.delta", audio=base64.b64encode(data).decode())
