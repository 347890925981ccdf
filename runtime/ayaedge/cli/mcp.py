"""The command that lets agents ask about images in some folders."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ayaedge.cli.console import show_messages, stderr
from ayaedge.cli.options import LoadingFlags, ModelOption, TileFlags, takes_flags
from ayaedge.errors import MissingExtraError


@takes_flags
def mcp(
    folders: Annotated[list[Path], typer.Argument(help="Whose images may be asked about.", metavar="DIR...")],
    model: ModelOption = None,
    max_tokens: Annotated[
        int | None, typer.Option("-n", "--max-tokens", help="Most tokens of an answer.")
    ] = None,
    sleep_after: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Unload the model when nobody has asked for so long."),
    ] = None,
    *,
    tiles: TileFlags,
    loading: LoadingFlags,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the libraries' messages.")] = False,
) -> None:
    """Let agents ask about the images in some folders: an MCP server over stdin and stdout.

    Agents start it themselves; it ends when they close its stdin. Neither requests nor images are logged.
    """
    try:
        from ayaedge.server.agent_tools import Toolbox
        from ayaedge.server.desk import Desk
        from ayaedge.server.holder import Holder
        from ayaedge.server.mcp_stdio import serve
        from ayaedge.server.options import Limits
    except ImportError as error:
        raise MissingExtraError("ayaedge mcp", "mcp") from error

    show_messages(logging.DEBUG if verbose else logging.WARNING)
    logging.getLogger("mcp").setLevel(logging.CRITICAL)  # quotes what clients send
    desk = Desk(Limits())
    holder = Holder(partial(loading.load, model, verbose=verbose), desk)
    box = Toolbox(holder, desk, tuple(folders), tiles=tiles.keywords(), max_tokens=max_tokens)
    stderr.print("An MCP server listens on stdin; neither requests nor images are logged.")
    serve(holder, box, sleep_after=sleep_after)
