"""The command for a chat on a terminal, or with whatever writes lines into a pipe."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from ayaedge.cache.options import NO_CACHE
from ayaedge.cli.chat_input import open_lines
from ayaedge.cli.chat_loop import ChatLoop, attach
from ayaedge.cli.console import show_messages, stderr
from ayaedge.cli.interrupts import ignore_interrupts
from ayaedge.cli.options import (
    BatchOption,
    BudgetOption,
    CacheOption,
    ContextOption,
    DeviceOption,
    FlashOption,
    ImageOption,
    KeyTypeOption,
    LayersOption,
    MaxTilesOption,
    ModelOption,
    ThreadsOption,
    TilesOption,
    UbatchOption,
    ValueTypeOption,
    VisionDeviceOption,
    decoder_options,
    tile_policy,
)
from ayaedge.images.tile_budget import TileChoice
from ayaedge.model import AyaVision
from ayaedge.options import AnswerKeywords, Overflow, answer_options
from ayaedge.vision.session import VisionOptions


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
    temperature: Annotated[float, typer.Option(help="0 is deterministic.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep this many of the likeliest tokens; 0 keeps all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Of the random numbers.")] = None,
    overflow: Annotated[
        Overflow,
        typer.Option(help="When the chat no longer fits into the context: refuse, or leave out the oldest."),
    ] = "error",
    max_tiles: MaxTilesOption = None,
    tiles: TilesOption = None,
    budget: BudgetOption = None,
    ctx_size: ContextOption = None,
    threads: ThreadsOption = None,
    batch_size: BatchOption = 512,
    ubatch_size: UbatchOption = None,
    cache_type_k: KeyTypeOption = "f16",
    cache_type_v: ValueTypeOption = None,
    flash_attn: FlashOption = None,
    draft: Annotated[
        int,
        typer.Option(
            rich_help_panel="Decoding", help="Most tokens to guess in a step when an answer copies."
        ),
    ] = 0,
    device: DeviceOption = "auto",
    n_gpu_layers: LayersOption = "auto",
    vision_device: VisionDeviceOption = None,
    cache: CacheOption = True,
    verbose: Annotated[
        bool,
        typer.Option("-v", "--verbose", help="Show the libraries' messages, and figures of each answer."),
    ] = False,
) -> None:
    """Talk about pictures: /help lists the commands, Ctrl-C stops an answer, /bye leaves.

    Lines may come from a pipe, too: answers go to stdout, a line each, and the exit code is 1 if any line could not be
    followed.
    """
    show_messages(logging.DEBUG if verbose else logging.WARNING)
    lines = open_lines()
    options = AnswerKeywords(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, overflow=overflow
    )
    answer_options(**options)  # a senseless value is refused before the model is loaded
    choice = TileChoice(tile_policy(tiles, budget), max_tiles, budget)
    attached = [attach(path) for path in image or []]
    decoder = decoder_options(
        context=ctx_size, threads=threads, batch=batch_size, ubatch=ubatch_size, cache_type_k=cache_type_k,
        cache_type_v=cache_type_v, flash_attention=flash_attn, layers=n_gpu_layers, draft=draft,
    )  # fmt: skip
    vision = VisionOptions(threads=threads, device=vision_device, verbose=verbose)
    kept = None if cache else NO_CACHE
    with AyaVision.load(model, device=device, decoder=decoder, vision=vision, cache=kept) as loaded:
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
        f"{model.bundle.name}. Drop pictures here; /help lists the commands, /bye leaves.", style="dim"
    )
