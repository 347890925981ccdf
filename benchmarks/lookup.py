"""What prompt lookup (`--draft N`) gains on answers that copy, and loses on others.

`python benchmarks/lookup.py BUNDLE [--drafts 3 7] [--tokens 48] [--threads 2]`

The decoder computes everything as for a real answer, but what it says is laid down: tokens copied from the prompt, with
every tenth one changed, or tokens that never occurred. With and without guesses take turns; the median of the ratios
counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ayaedge.bundle import read_bundle
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.options import DecoderOptions
from ayaedge.decoder.prompt_lookup import LookupDecoder

_PROMPT = 256
_CHANGED = 10
_ROUNDS = 3
_NO_IMAGE = -1


class ScriptedDecoder(Decoder):
    """Says what stands in `script` at each position, whatever its logits are."""

    script: Sequence[int] = ()

    def likeliest(self) -> list[int]:
        """See `Decoder`; the rows are looked at all the same."""
        rows = len(super().likeliest())
        return [self.script[self.position - rows + 1 + row] for row in range(rows)]


def scripts(vocabulary: int, answer: int) -> dict[str, list[int]]:
    """Prompt and answer of each kind."""
    rng = np.random.default_rng(0)
    prompt = [int(token) for token in rng.choice(vocabulary // 2, _PROMPT, replace=False)]
    other = [int(token) for token in vocabulary // 2 + rng.choice(vocabulary // 2, answer, replace=False)]
    copied = [other[i] if i % _CHANGED == 0 else token for i, token in enumerate(prompt[:answer])]
    return {
        "copies every token": prompt + prompt[:answer],
        "copies 9 of 10 tokens": prompt + copied,
        "copies nothing": prompt + other,
    }


def seconds(decoder: ScriptedDecoder, script: list[int], answer: int, *, guess: bool) -> float:
    """Of an answer behind its prompt, whose last token is computed first and not counted."""
    decoder.script = [*script, 0]
    decoder.keep(_PROMPT - 1)
    decoder.decode_tokens([script[_PROMPT - 1]])
    started = time.perf_counter()
    if guess:
        lookup, given = LookupDecoder(decoder, script[:_PROMPT], _NO_IMAGE), [decoder.likeliest()[-1]]
        while len(given) < answer:
            given += lookup.decode(given[-1], answer - len(given))
        assert given == script[_PROMPT : _PROMPT + answer]
    else:
        for token in script[_PROMPT : _PROMPT + answer - 1]:
            decoder.decode_tokens([token])
            decoder.likeliest()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--drafts", type=int, nargs="*", default=[3, 7])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    bundle = read_bundle(arguments.bundle)
    print("| an answer that | draft | tokens/s without | tokens/s with | x |\n|---|---|---|---|---|")
    for draft in arguments.drafts:
        options = DecoderOptions(threads=arguments.threads, draft_tokens=draft)
        with ScriptedDecoder(bundle.decoder_path, bundle.manifest, options) as decoder:
            for name, script in scripts(decoder.vocabulary.size, arguments.tokens).items():
                decoder.clear()
                decoder.decode_tokens(script[:_PROMPT])
                times = np.array(
                    [
                        [seconds(decoder, script, arguments.tokens, guess=guess) for guess in (False, True)]
                        for _ in range(_ROUNDS)
                    ]
                )
                plain, guessed = arguments.tokens / np.median(times, axis=0)
                ratio = np.median(times[:, 0] / times[:, 1])
                print(f"| {name} | {draft} | {plain:.2f} | {guessed:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
