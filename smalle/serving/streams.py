"""Response bodies that are sent while the speech is generated."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable
from typing import TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .openai import SERVER_ERROR, ApiError, audio_event, error_fields, event
from .service import Part

T = TypeVar("T")


async def unless_the_client_leaves(request: Request, work: Awaitable[T]) -> T:
    """The result of the work. Cancels the work if the client disconnects before."""

    async def client_leaves():
        while (await request.receive())["type"] != "http.disconnect":
            pass

    result, leaving = asyncio.ensure_future(work), asyncio.ensure_future(client_leaves())
    try:
        await asyncio.wait((result, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ApiError(499, "The client has disconnected.")  # nobody reads this
        return result.result()
    finally:
        result.cancel()  # no effect if it is done
        leaving.cancel()


async def joined(parts: AsyncGenerator[Part]) -> bytes:
    """The bytes of all parts."""
    async with contextlib.aclosing(parts):
        return b"".join([part.data async for part in parts])


async def following(first: Part, parts: AsyncGenerator[Part]) -> AsyncGenerator[Part]:
    """The first part, then the others."""
    async with contextlib.aclosing(parts):
        yield first
        async for part in parts:
            yield part


async def data_of(parts: AsyncGenerator[Part]) -> AsyncGenerator[bytes]:
    async with contextlib.aclosing(parts):
        async for part in parts:
            if part.data:
                yield part.data


async def sse(parts: AsyncGenerator[Part]) -> AsyncGenerator[bytes]:
    """A speech as server-sent events."""
    async with contextlib.aclosing(parts):
        try:
            async for part in parts:
                if part.words:
                    yield event("speech.words", words=part.words)
                if part.data:
                    yield audio_event(part.data)
            yield event("speech.audio.done", usage={"input_tokens": 0, "output_tokens": 0, "total_tokens": 0})
        except ApiError as error:  # the status was already sent
            yield event("error", error=error_fields(error.status, error.message, error.param, error.code))
        except Exception:
            yield event("error", error=error_fields(500, SERVER_ERROR))
            raise


class ClosingResponse(StreamingResponse):
    """Closes its iterator at the end, even if the client has disconnected."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().__call__(scope, receive, send)
