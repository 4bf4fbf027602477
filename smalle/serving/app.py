"""The HTTP server: OpenAI's speech endpoint, voices, metrics and the page."""

import contextlib
import importlib.metadata
import importlib.util
import pathlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from .engine import CheckpointEngine, Engine
from .guards import BodyLimit, OwnPagesOnly
from .openai import ApiError, answer_exception
from .pool import Busy
from .routes import api_routes
from .service import SpeechService
from .settings import Settings

STATIC = pathlib.Path(__file__).with_name("static")
PAGE_POLICY = "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; frame-ancestors 'none'"


def load_engine(model: str | None = None, lexicon: str | None = None) -> Engine:
    """The engine of a checkpoint: `CheckpointEngine`, or `LiteEngine` if PyTorch is not installed."""
    if importlib.util.find_spec("torch") is not None:
        return CheckpointEngine(model, lexicon)
    from .lite_engine import LiteEngine

    return LiteEngine(model, lexicon)


def create_app(settings: Settings | None = None, engine: Engine | None = None) -> FastAPI:
    """Creates the application.

    Args:
        settings: the settings; None: the defaults.
        engine: the synthesizer; None: load the checkpoint that the settings name.

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
        service.close()

    app = FastAPI(
        title="smalle serve",
        summary="Speech from text, with OpenAI's API.",
        version=importlib.metadata.version("smalle"),
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from other hosts
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


def page_routes(service: SpeechService) -> APIRouter:
    """The page and the health check, which need no API key."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, Any]:
        engine, settings = service.engine, service.settings
        can = {"words": engine.knows_words, "clone": engine.clones and settings.max_voices > 0}
        return {"status": "ok", "model": engine.name, "needs_key": bool(settings.api_keys), "can": can}

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers={"Content-Security-Policy": PAGE_POLICY})

    return router
