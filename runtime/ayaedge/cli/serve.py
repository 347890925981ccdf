"""The command that serves a bundle to programs on this machine, or on others that have a key."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ayaedge.cli.console import show_messages, stderr
from ayaedge.cli.options import LoadingFlags, ModelOption, takes_flags
from ayaedge.errors import MissingExtraError

_WHO, _COST = "Who may ask", "What a request may cost"


@dataclass(frozen=True)
class AccessFlags:
    """Where a server listens, and who may ask."""

    host: Annotated[str, typer.Option(rich_help_panel=_WHO, help="0.0.0.0 is for other computers too.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, typer.Option(rich_help_panel=_WHO, help="0 takes a free one.")] = 8080
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="AYAEDGE_API_KEY",
            rich_help_panel=_WHO,
            help="What requests must show; others see the environment variable less easily than a flag.",
        ),
    ] = None
    no_auth: Annotated[
        bool, typer.Option("--no-auth", rich_help_panel=_WHO, help="Let everybody in who reaches the host.")
    ] = False
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN", rich_help_panel=_WHO, help="Web pages that may ask, like https://a.example; repeatable."
        ),
    ] = None  # fmt: skip
    media_path: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", rich_help_panel=_WHO, help="Whose images requests may name by file URL; repeatable."
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class LimitFlags:
    """What a request may cost."""

    queue: Annotated[int, typer.Option(rich_help_panel=_COST, help="Requests that may wait.")] = 16
    max_tokens: Annotated[
        int | None, typer.Option("-n", "--max-tokens", rich_help_panel=_COST, help="Most tokens of an answer.")
    ] = None  # fmt: skip
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", rich_help_panel=_COST, help="For a request, waiting included.")
    ] = 3600.0
    max_body: Annotated[
        int, typer.Option(metavar="MB", rich_help_panel=_COST, help="Largest body of a request.")
    ] = 32
    max_pixels: Annotated[
        int, typer.Option(metavar="MILLIONS", rich_help_panel=_COST, help="Pixels of an image.")
    ] = 64
    grace: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", rich_help_panel=_COST, help="That running requests have when the server stops."
        ),
    ] = 10.0
    sleep_after: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", rich_help_panel=_COST, help="Unload the model when nobody has asked for so long."
        ),
    ] = None  # fmt: skip


@takes_flags
def serve(
    model: ModelOption = None,
    *,
    access: AccessFlags,
    limits: LimitFlags,
    loading: LoadingFlags,
    isolated: Annotated[
        bool,
        typer.Option(
            "--isolated", help="Run the model in a process of its own, and load it again if that dies."
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the libraries' messages.")] = False,
) -> None:
    """Serve a page and OpenAI's chat completions on this machine, for browsers and programs.

    Ctrl-C stops it as soon as the running requests have ended. Neither requests nor images are logged.
    """
    try:
        from ayaedge.server.options import Limits, ServerOptions
        from ayaedge.server.serving import Server
    except ImportError as error:
        raise MissingExtraError("ayaedge serve", "server") from error

    show_messages(logging.DEBUG if verbose else logging.WARNING)
    logging.getLogger("ayaedge.server").setLevel(logging.INFO)
    options = ServerOptions(
        host=access.host, port=access.port, api_key=access.api_key, no_auth=access.no_auth,
        allow_origins=tuple(access.allow_origin or ()), local_files=tuple(access.media_path or ()), grace=limits.grace,
        limits=Limits(
            body_bytes=limits.max_body << 20, pixels=limits.max_pixels * 1_000_000, tokens=limits.max_tokens,
            queue=limits.queue, seconds=limits.timeout,
        ),
    )  # fmt: skip
    server = Server(
        partial(loading.load, model, verbose=verbose, isolated=isolated),
        options,
        sleep_after=limits.sleep_after,
    )
    stderr.print(f"{server.url}/v1 is ready as soon as the model is loaded; Ctrl-C stops it.")
    stderr.print(f"In a browser: {server.url}")
    stderr.print("Neither requests nor images are logged.")
    server.run()
