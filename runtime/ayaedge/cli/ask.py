"""`ayaedge ask`: one question, and its answer as it comes."""

from __future__ import annotations

import logging
from itertools import chain
from typing import Annotated

import typer

from ayaedge.answers import Answer, Timings
from ayaedge.cli.console import JsonFlag, accelerated, show_messages, stderr, step_progress, write, write_json
from ayaedge.cli.options import (
    ChoiceOption,
    GrammarOption,
    ImageOption,
    JsonSchemaOption,
    LoadingFlags,
    ModelOption,
    SamplingFlags,
    StopOption,
    TileFlags,
    grammar_of,
    schema_of,
    takes_flags,
)
from ayaedge.model import AyaVision


@takes_flags
def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    model: ModelOption = None,
    image: ImageOption = None,
    system: Annotated[
        str | None, typer.Option("-s", "--system", help="Instruction before the question.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("-n", "--max-tokens", help="Most tokens of the answer.")
    ] = None,
    *,
    sampling: SamplingFlags,
    tiles: TileFlags,
    loading: LoadingFlags,
    stop: StopOption = None,
    json_schema: JsonSchemaOption = None,
    grammar: GrammarOption = None,
    choice: ChoiceOption = None,
    as_json: JsonFlag = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the libraries' messages.")] = False,
) -> None:
    """Ask a question about one or more images, or without any."""
    show_messages(logging.DEBUG if verbose else logging.WARNING)
    if model is None:
        stderr.print(
            "Using the small demonstration model that ships with ayaedge: it only knows coloured shapes and numbers.\n"
            "For the real one: ayaedge export CHECKPOINT, then -m BUNDLE.",
            style="dim",
        )
    with loading.load(model, verbose=verbose) as loaded:
        with step_progress() as on_progress:
            stream = loaded.stream(
                question, images=image or [], system=system, max_tokens=max_tokens, on_progress=on_progress,
                stop=stop or (), grammar=grammar_of(grammar), choices=choice, response_format=schema_of(json_schema),
                **tiles.keywords(), **sampling.keywords(),
            )  # fmt: skip
            first = next(stream, "")
        for piece in chain([first], stream):
            if not as_json:
                write(piece)
        _finish_answer(loaded, stream.answer, as_json=as_json, verbose=verbose)


def _finish_answer(model: AyaVision, answer: Answer, *, as_json: bool, verbose: bool) -> None:
    if as_json:
        write_json({"model": model.bundle.name, **answer.to_dict()})
        return
    write("\n")
    if verbose:
        usage, timings = answer.usage, answer.timings
        stderr.print(
            f"{usage.prompt_tokens} prompt tokens ({usage.image_tokens} of images, tiles {list(usage.tiles)}; "
            f"{usage.cached_tokens} known), "
            f"{usage.completion_tokens} answered; vision {timings.vision:.2f} s, prefill {timings.prefill:.2f} s"
            f"{accelerated(timings)}, "
            f"first token after {timings.first_token:.2f} s"
            f"{_predicted(timings)}, decode {timings.decode:.2f} s",
            style="dim",
        )
        for number, image in enumerate(usage.images, 1):
            stderr.print(f"image {number}: {image}", style="dim")


def _predicted(timings: Timings) -> str:
    return "" if timings.predicted is None else f" ({timings.predicted:.2f} s were predicted)"
