"""The command for a chat on a terminal, or with whatever writes lines into a pipe."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, cast

import typer

from ayaedge.cli.chat_input import open_lines
from ayaedge.cli.chat_loop import ChatLoop, attach
from ayaedge.cli.console import show_messages, stderr
from ayaedge.cli.interrupts import ignore_interrupts
from ayaedge.cli.options import (
    ImageOption,
    LoadingFlags,
    ModelOption,
    SamplingFlags,
    TileFlags,
    takes_flags,
)
from ayaedge.images.load import list_images
from ayaedge.model import AyaVision
from ayaedge.options import AnswerKeywords, Overflow, answer_options


@takes_flags
def chat(
    model: ModelOption = None,
    image: ImageOption = None,
    system: Annotated[str | None, typer.Option("-s", "--system", help="Instruction before the chat.")] = None,
    open_file: Annotated[
        Path | None, typer.Option("--open", metavar="FILE.ayachat", help="Go on with a chat that was saved.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("-n", "--max-tokens", help="Most tokens of an answer.")
    ] = None,
    *,
    sampling: SamplingFlags,
    tiles: TileFlags,
    loading: LoadingFlags,
    overflow: Annotated[
        Overflow,
        typer.Option(help="When the chat no longer fits into the context: refuse, or leave out the oldest."),
    ] = "error",
    verbose: Annotated[
        bool,
        typer.Option("-v", "--verbose", help="Show the libraries' messages, and figures of each answer."),
    ] = False,
) -> None:
    """Talk about images: /help lists the commands, Ctrl-C stops an answer, /bye leaves.

    Lines may come from a pipe, too: answers go to stdout, a line each, and the exit code is 1 if any line could not be
    followed.
    """
    show_messages(logging.DEBUG if verbose else logging.WARNING)
    lines = open_lines()
    kept = {"max_tokens": max_tokens, "overflow": overflow, **sampling.keywords()}
    options = cast("AnswerKeywords", kept)
    answer_options(**options)  # an invalid value is refused before the model is loaded
    choice, attached = tiles.choice(), [attach(page) for page in list_images(image)]
    with loading.load(model, verbose=verbose) as loaded:
        try:
            loop = ChatLoop(
                loaded, loaded.chat(system=system), lines, attached=attached, tiles=choice, options=options,
                verbose=verbose,
            )  # fmt: skip
            if open_file is not None:
                loop.open(open_file, system=system)
            if lines.interactive:
                _greet(loaded, is_demo=model is None)
            loop.run()
        finally:
            ignore_interrupts()  # weights are freed now
    if loop.failed and not lines.interactive:
        raise typer.Exit(1)


def _greet(model: AyaVision, *, is_demo: bool) -> None:
    if is_demo:
        stderr.print(
            "This is the small demonstration model that ships with ayaedge: it only knows coloured shapes and numbers.",
            style="dim",
        )
    stderr.print(
        f"{model.bundle.name}. Drop images here; /help lists the commands, /bye leaves.", style="dim"
    )
