"""Middleware: a size limit for requests, and protection against requests from pages of other sites."""

import urllib.parse

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .openai import error_answer


class BodyLimit:
    """Refuses request bodies as soon as they exceed the limit."""

    def __init__(self, app: ASGIApp, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = self.most

        async def receive_some() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, f"The request is too large: send up to {self.most} bytes.")
            return message

        await self.app(scope, receive_some, send)


class OwnPagesOnly:
    """Refuses requests from pages of other sites: browsers let them send forms to any server that they can reach."""

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]):
        self.app, self.allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
            origin = headers.get(b"origin")
            own = origin is None or urllib.parse.urlsplit(origin).netloc == headers.get(b"host")
            if not own and origin not in self.allowed:
                await error_answer(403, f"Pages of {origin} may not use this server.")(scope, receive, send)
                return
        await self.app(scope, receive, send)
