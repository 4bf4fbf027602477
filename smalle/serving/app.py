"""The HTTP server: OpenAI's speech endpoint, voices, metrics and the page."""

import contextlib
import hmac
import importlib.metadata
import importlib.util
import pathlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from .encoding import MEDIA_TYPES
from .engine import CheckpointEngine, Engine
from .guards import BodyLimit, OwnPagesOnly
from .openai import (
    ERRORS,
    MODEL_NAMES,
    ApiError,
    SpeechRequest,
    Voice,
    answer_exception,
)
from .pool import Busy
from .service import SpeechService
from .settings import Settings
from .streams import ClosingResponse, data_of, first_part, following, sse

STATIC = pathlib.Path(__file__).with_name("static")
PAGE_POLICY = "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; frame-ancestors 'none'"
CONSENT = "yes", "true", "1", "on"


def load_engine(model: str | None = None, lexicon: str | None = None) -> Engine:
    """The engine of a checkpoint: `CheckpointEngine`, or `LiteEngine` where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is not None:
        return CheckpointEngine(model, lexicon)
    from .lite_engine import LiteEngine

    return LiteEngine(model, lexicon)


def create_app(settings: Settings | None = None, engine: Engine | None = None) -> FastAPI:
    """The application. Without an engine, loads the checkpoint of the settings; without settings, takes the defaults.

    Raises:
        ValueError: the checkpoint cannot be loaded.
    """
    settings = settings or Settings()
    service = SpeechService(engine or load_engine(settings.model, settings.lexicon), settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            if settings.wyoming:
                from .wyoming import serve_wyoming

                await stack.enter_async_context(serve_wyoming(service, settings.wyoming))
            yield
        service.pool.close()

    app = FastAPI(
        title="smalle serve",
        summary="Speech from text, with OpenAI's API.",
        version=importlib.metadata.version("smalle"),
        lifespan=lifespan,
        docs_url=None,  # they load scripts from other hosts
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(api_routes(service))
    app.include_router(page_routes(service))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    for kind in (ApiError, Busy, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer_exception)
    app.add_middleware(BodyLimit, most=settings.max_upload)
    app.add_middleware(OwnPagesOnly, allowed=settings.cors_origins)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, allow_methods="*", allow_headers="*")
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=settings.allowed_hosts, www_redirect=False)
    return app


def app_from_environment() -> FastAPI:
    """The application of a worker process, with the settings that its parent wrote into the environment."""
    return create_app(Settings.from_environment())


# --- the API


def api_routes(service: SpeechService) -> APIRouter:
    """OpenAI's routes, and the metrics; with API keys, all of them need one."""
    settings, engine = service.settings, service.engine

    async def check_key(request: Request):
        """Raises ApiError unless the request has one of the keys."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in settings.api_keys]
        if settings.api_keys and not (scheme.lower() == "bearer" and any(right)):
            raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")

    router = APIRouter(dependencies=[Depends(check_key)], responses=ERRORS)

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model_description(name) for name in (engine.name, *MODEL_NAMES)]}

    @router.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        check_model(name)
        return model_description(name)

    def model_description(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "smalle"}

    def check_model(name: str):
        if name not in (engine.name, *MODEL_NAMES):
            raise ApiError(404, f"model={name[:100]!r} is not here: use {engine.name!r}.", "model", "model_not_found")

    @router.get("/v1/audio/voices")
    async def list_voices() -> dict[str, Any]:
        presets = [Voice(id=name, created_at=0, name=name, type="preset") for name in engine.voices]
        uploaded = [Voice.of(voice) for voice in service.voices.all()]
        return {"object": "list", "default": engine.default_voice, "data": [*presets, *uploaded]}

    @router.post("/v1/audio/voices")
    async def create_voice(
        name: Annotated[str, Form()],
        audio_sample: Annotated[UploadFile, File(description="wav, flac, ogg or mp3 of one speaker")],
        consent: Annotated[str, Form(description='"yes": the speaker agrees to this use of the recording')] = "",
        transcript: Annotated[str, Form(description="what the recording says; the model then continues it")] = "",
    ) -> Voice:
        if consent.strip().lower() not in CONSENT:
            message = 'A voice needs the consent of its speaker: send consent="yes" if the speaker agrees.'
            raise ApiError(400, message, "consent", "consent_required")
        transcript = transcript.strip()
        if len(transcript) > settings.max_characters:
            raise too_long("transcript", transcript)
        return Voice.of(await service.add_voice(name, await audio_sample.read(), transcript or None))

    @router.delete("/v1/audio/voices/{id}")
    async def delete_voice(id: str) -> dict[str, Any]:
        if not service.voices.delete(id):
            raise ApiError(404, f"There is no uploaded voice {id[:100]!r}.", "id", "voice_not_found")
        return {"id": id, "object": "audio.voice.deleted", "deleted": True}

    sound = {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA_TYPES.values()}
    described: dict[int | str, dict[str, Any]] = {
        200: {"content": {**sound, "text/event-stream": {}}, "description": "The speech, while it is made."}
    }

    @router.post("/v1/audio/speech", response_class=Response, responses=described)
    async def speak(request: Request, body: SpeechRequest) -> Response:
        check_model(body.model)
        check_speech(body)
        voice = service.find_voice(body.voice if isinstance(body.voice, str) else body.voice.id)
        events, words = body.stream_format == "sse", bool(body.timestamp_granularities)
        parts = service.speak(body.input, voice, body.response_format, body.speed, body.seed, words)
        first = await first_part(request, parts)
        stream, kind = following(first, parts), MEDIA_TYPES[body.response_format]
        if events:
            return ClosingResponse(sse(stream), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        return ClosingResponse(data_of(stream), media_type=kind)

    def check_speech(body: SpeechRequest):
        if body.response_format == "aac":
            raise ApiError(400, "aac cannot be written here: use mp3, opus, flac, wav or pcm.", "response_format")
        if body.timestamp_granularities and body.stream_format != "sse":
            raise ApiError(400, "The times of words are events: send stream_format='sse'.", "timestamp_granularities")
        if len(body.input) > settings.max_characters:
            raise too_long("input", body.input)

    def too_long(name: str, text: str) -> ApiError:
        message = f"{name} has {len(text)} characters: expected up to {settings.max_characters}; send it in parts."
        return ApiError(400, message, name, "string_above_max_length")

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return router


def page_routes(service: SpeechService) -> APIRouter:
    """The page, and whether the server works: for everyone."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, Any]:
        engine, needs_key = service.engine, bool(service.settings.api_keys)
        can = {"words": engine.knows_words, "clone": engine.clones}
        return {"status": "ok", "model": engine.name, "needs_key": needs_key, "can": can}

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": PAGE_POLICY})

    return router
