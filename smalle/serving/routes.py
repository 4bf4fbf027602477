"""The routes of OpenAI's speech API, and of the metrics."""

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile

from .encoding import MEDIA_TYPES
from .openai import ERRORS, MODEL_NAMES, ApiError, SpeechRequest, Voice
from .service import SpeechService
from .streams import ClosingResponse, data_of, following, joined, sse, unless_the_client_leaves

CONSENT = "yes", "true", "1", "on"
SOUNDS = {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA_TYPES.values()}
SPEECH: dict[int | str, dict[str, Any]] = {
    200: {"content": {**SOUNDS, "text/event-stream": {}}, "description": "The speech, sent while it is generated."}
}


def api_routes(service: SpeechService) -> APIRouter:
    """OpenAI's routes and the metrics. If there are API keys, all routes require one."""
    router = APIRouter(dependencies=[Depends(key_check(service.settings.api_keys))], responses=ERRORS)
    for add in (add_models, add_voices, add_speech, add_metrics):
        add(router, service)
    return router


def key_check(keys: tuple[str, ...]) -> Callable[[Request], Awaitable[None]]:
    """A dependency that raises ApiError unless a request has one of the keys or there are no keys."""

    async def check_key(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]
        if keys and not (scheme.lower() == "bearer" and any(right)):
            raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")

    return check_key


def check_model(name: str, own: str) -> None:
    """Raises ApiError unless `name` stands for the model of the server, `own`."""
    if name not in (own, *MODEL_NAMES):
        raise ApiError(404, f"model={name[:100]!r} does not exist: use {own!r}.", "model", "model_not_found")


def check_length(name: str, text: str, most: int) -> None:
    """Raises ApiError if a field of a request is longer than `most` characters."""
    if len(text) > most:
        message = f"{name} has {len(text)} characters: expected at most {most}; send it in parts."
        raise ApiError(400, message, name, "string_above_max_length")


def add_models(router: APIRouter, service: SpeechService) -> None:
    own = service.engine.name

    def description(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "smalle"}

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [description(name) for name in (own, *MODEL_NAMES)]}

    @router.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        check_model(name, own)
        return description(name)


def add_voices(router: APIRouter, service: SpeechService) -> None:
    engine, settings = service.engine, service.settings

    @router.get("/v1/audio/voices")
    async def list_voices() -> dict[str, Any]:
        presets = [Voice(id=name, created_at=0, name=name, type="preset") for name in engine.voices]
        uploaded = [Voice.of(voice) for voice in service.voices.all()]
        return {"object": "list", "default": engine.default_voice, "data": [*presets, *uploaded]}

    @router.post("/v1/audio/voices")
    async def create_voice(
        request: Request,
        name: Annotated[str, Form()],
        audio_sample: Annotated[UploadFile, File(description="wav, flac, ogg or mp3 of one speaker")],
        consent: Annotated[str, Form(description='"yes": the speaker agrees to this use of the recording')] = "",
        transcript: Annotated[
            str, Form(description="transcript of the recording, if the model is to continue it")
        ] = "",
    ) -> Voice:
        if consent.strip().lower() not in CONSENT:
            message = 'The speaker must consent to this use of the voice: send consent="yes" if that is so.'
            raise ApiError(400, message, "consent", "consent_required")
        transcript = transcript.strip()
        check_length("transcript", transcript, settings.max_characters)
        work = service.add_voice(name, await audio_sample.read(), transcript or None)
        return Voice.of(await unless_the_client_leaves(request, work))

    @router.delete("/v1/audio/voices/{id}")
    async def delete_voice(id: str) -> dict[str, Any]:
        if not service.voices.delete(id):
            raise ApiError(404, f"There is no uploaded voice {id[:100]!r}.", "id", "voice_not_found")
        return {"id": id, "object": "audio.voice.deleted", "deleted": True}


def check_speech(body: SpeechRequest, most_characters: int) -> None:
    """Raises ApiError for invalid requests that pydantic accepts."""
    if body.response_format == "aac":
        raise ApiError(400, "aac is not supported: use mp3, opus, flac, wav or pcm.", "response_format")
    if body.timestamp_granularities and body.stream_format != "sse":
        raise ApiError(400, "Word times are sent as events: set stream_format='sse'.", "timestamp_granularities")
    check_length("input", body.input, most_characters)


def add_speech(router: APIRouter, service: SpeechService) -> None:
    @router.post("/v1/audio/speech", response_class=Response, responses=SPEECH)
    async def speak(request: Request, body: SpeechRequest) -> Response:
        check_model(body.model, service.engine.name)
        check_speech(body, service.settings.max_characters)
        voice = service.find_voice(body.voice if isinstance(body.voice, str) else body.voice.id)
        kind = MEDIA_TYPES[body.response_format]
        parts = service.speak(
            body.input,
            voice,
            body.response_format,
            speed=body.speed,
            seed=body.seed,
            word_times=bool(body.timestamp_granularities),
            streamed=body.stream,
        )
        if not body.stream and body.stream_format == "audio":
            return Response(await unless_the_client_leaves(request, joined(parts)), media_type=kind)
        stream = following(await unless_the_client_leaves(request, anext(parts)), parts)
        if body.stream_format == "sse":
            return ClosingResponse(sse(stream), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        return ClosingResponse(data_of(stream), media_type=kind)


def add_metrics(router: APIRouter, service: SpeechService) -> None:
    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")
