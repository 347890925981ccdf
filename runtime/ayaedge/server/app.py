"""All routes of a server, and what stands before them."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ayaedge import __version__
from ayaedge.server.asked import Surface
from ayaedge.server.chat_completions import ChatCompletions, openai_fault
from ayaedge.server.endpoint import CountEndpoint, Endpoint, Service
from ayaedge.server.guard import HostGuard, KeyGuard
from ayaedge.server.messages import Messages
from ayaedge.server.metrics import CONTENT_TYPE
from ayaedge.server.ollama import OllamaChat, OllamaGenerate, describe, show
from ayaedge.server.openapi import document
from ayaedge.server.options import ServerOptions
from ayaedge.server.page import page_routes
from ayaedge.server.plans import PlanEndpoint
from ayaedge.server.refusals import RequestRefusedError
from ayaedge.server.responses import Responses

SURFACES: dict[str, type[Surface]] = {
    "/v1/chat/completions": ChatCompletions,
    "/v1/messages": Messages,
    "/v1/responses": Responses,
    "/api/chat": OllamaChat,
    "/api/generate": OllamaGenerate,
}
"""What answers questions, by its path."""
_LOADING = 503


class Desktop:
    """Everything that is not a question: what is served, and how it goes."""

    def __init__(self, service: Service):
        self._service = service

    async def health(self, _request: Request) -> Response:
        """`ready`, `busy`, `asleep` with 200, or `loading` with 503; and how many requests are open."""
        state = self._service.holder.state
        body = {"status": state, "requests": self._service.desk.open, "version": __version__}
        return JSONResponse(body, _LOADING if state == "loading" else 200)

    async def models(self, request: Request) -> Response:
        """The one model, as a list or by its name."""
        name = (await self._service.holder.bundle()).name
        model = {"id": name, "object": "model", "created": 0, "owned_by": "ayaedge"}
        asked = request.path_params.get("name")
        if asked is None:
            return JSONResponse({"object": "list", "data": [model]})
        if asked != name:
            raise HTTPException(404, f"there is no model {asked[:100]!r}; this server has {name!r}")
        return JSONResponse(model)

    async def tags(self, _request: Request) -> Response:
        """The one model, as Ollama lists it."""
        return JSONResponse({"models": [describe(await self._service.holder.bundle())]})

    async def show(self, _request: Request) -> Response:
        """The one model, as Ollama shows it, whatever the request calls it."""
        return JSONResponse(show(await self._service.holder.bundle()))

    async def version(self, _request: Request) -> Response:
        """The server's version, as Ollama says it."""
        return JSONResponse({"version": __version__})

    async def metrics(self, _request: Request) -> Response:
        """Figures for Prometheus."""
        text = self._service.metrics.text(open_requests=self._service.desk.open)
        return PlainTextResponse(text, media_type=CONTENT_TYPE)

    async def openapi(self, _request: Request) -> Response:
        """The document that describes all this."""
        return JSONResponse(document())


def make_app(service: Service, options: ServerOptions) -> Starlette:
    """The ASGI application."""
    desktop = Desktop(service)
    routes = [Route(path, Endpoint(kind(), service), methods=["POST"]) for path, kind in SURFACES.items()]
    routes += [
        Route("/v1/messages/count_tokens", CountEndpoint(Messages(), service), methods=["POST"]),
        Route("/v1/plan", PlanEndpoint(service), methods=["POST"]),
        Route("/health", desktop.health),
        Route("/v1/models", desktop.models),
        Route("/v1/models/{name:path}", desktop.models),
        Route("/api/tags", desktop.tags),
        Route("/api/show", desktop.show, methods=["POST"]),
        Route("/api/version", desktop.version),
        Route("/metrics", desktop.metrics),
        Route("/openapi.json", desktop.openapi),
        *page_routes(),
    ]
    middleware = [Middleware(HostGuard, options=options)]
    if options.allow_origins:
        middleware.append(
            Middleware(
                CORSMiddleware, allow_origins=options.allow_origins, allow_methods=["*"], allow_headers=["*"]
            )
        )
    middleware.append(Middleware(KeyGuard, options=options))
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _fault})


async def _fault(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    words = error.detail if isinstance(error, HTTPException) else "the server failed"
    refusal = RequestRefusedError(words, status=status)
    headers = error.headers if isinstance(error, HTTPException) else None
    return JSONResponse({"type": "error", **openai_fault(refusal, {})}, status, headers)
