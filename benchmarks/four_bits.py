"""What error feedback and chosen types are worth on a really trained multilingual decoder, at the same bytes.

`python benchmarks/four_bits.py [--directory build/whisper] [--chart docs/four_bits.png] [--only PART ...]`

    methods     every linear in Q4_K: plain, importance matrix, error feedback in several forms
    allocation  chosen types against Q4_K_M's fixed rule, carried over to Whisper
    noise       other portions of the calibration text, and other sounds
    languages   calibration on English alone against all languages
    chart       KL divergence against bits per weight

The model is whisper-base's decoder, 60 linears with 25 million weights; the head is left alone. Hessians, encoders
and the allocation are the library's; only the loop over layers is this file's. Calibration and evaluation are texts of
different domains after different sounds. Needs what `whisper_model.py` needs. Results are kept in build/four_bits.json:
a run goes on where the last one ended; without that file everything is measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, lru_cache, partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper_model
from numpy.typing import NDArray
from points_chart import draw_points
from torch import Tensor
from torch.nn import functional
from whisper_model import LANGUAGES

from ayaedge.hardware.machine import usable_threads
from ayaedge_export.best.sensitivity import KINDS, PROBE, THIRDS
from ayaedge_export.effort import BLOCK
from ayaedge_quant import kernels
from ayaedge_quant.allocation import Choice, allocate, bytes_of, loss_of
from ayaedge_quant.blocks import SUPER_BLOCK
from ayaedge_quant.gptq import GptqEncoder
from ayaedge_quant.hessian import Hessian
from ayaedge_quant.kl_divergence import KlDivergence
from ayaedge_quant.number_formats import GgmlType, decode, encode

FloatArray = NDArray[np.float32]
Product = Callable[[str, Tensor], Tensor]
"""A linear's name and its input (..., columns) to the product without bias."""

RESULTS = Path("build/four_bits.json")
PROMPT = 4
"""Tokens in front of each text."""
STATES, LENGTH = 4, 133
"""For calibration: recordings, and tokens of each text, as many in all as an export reads. Every recording is heard
with every language."""
EVALUATION_STATES, EVALUATION_LENGTH, EVALUATION_SEED = 3, 120, 100
PROBE_LENGTH = 40
"""Tokens of each language that sensitivities are measured on."""
ENGLISH_LENGTH = 64
"""Tokens of each text where English must fill the places of all languages."""
OTHER = {"prose": "django", "django": "prose"}
"""What is evaluated on, by what was calibrated on."""
SHARES = (0.9, 0.94, 1.0, 1.1, 1.2, 1.35, 1.6)
"""Budgets in the chart, in parts of the rule's bytes."""
PORTIONS = 3


# Model


class Decoder:
    """Whisper's decoder, layer by layer, with products from elsewhere."""

    def __init__(self, directory: Path):
        self.whisper = whisper_model.load_model(directory)
        self._decoder = self.whisper.model.decoder
        self.layers = len(self._decoder.layers)
        self.weights: dict[str, Tensor] = {
            f"{number}.{name}": module.weight
            for number, layer in enumerate(self._decoder.layers)
            for name, module in layer.named_modules()
            if isinstance(module, torch.nn.Linear)
        }

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens (..., positions) to (..., positions, width)."""
        return self._decoder.embed_tokens(ids) + self._decoder.embed_positions.weight[: ids.shape[-1]]

    def layer(self, number: int, x: Tensor, states: Tensor, product: Product) -> Tensor:
        """Take x (states, texts, positions, width), which hears states (states, frames, width), through a layer."""
        layer = self._decoder.layers[number]

        def linear(name: str, x: Tensor) -> Tensor:
            bias = layer.get_submodule(name).bias
            result = product(f"{number}.{name}", x)
            return result if bias is None else result + bias

        def attend(name: str, x: Tensor, memory: Tensor, *, causal: bool) -> Tensor:
            query, key, value = (
                _heads(linear(f"{name}.{part}_proj", source))
                for part, source in zip("qkv", (x, memory, memory), strict=True)
            )
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
            return linear(f"{name}.out_proj", mixed.transpose(1, 2).reshape(x.shape))

        normed = layer.self_attn_layer_norm(x)
        x = x + attend("self_attn", normed, normed, causal=True)
        normed = layer.encoder_attn_layer_norm(x).flatten(1, 2)  # all texts after the same sound
        x = x + attend("encoder_attn", normed, states, causal=False).view_as(x)
        return x + linear("fc2", functional.gelu(linear("fc1", layer.final_layer_norm(x))))

    def run(self, passages: Passages, product: Product) -> Tensor:
        """Final hidden states of the texts without their prompts, (states, texts, positions, width)."""
        x = self.embed(passages.ids)
        for number in range(self.layers):
            x = self.layer(number, x, passages.states, product)
        return self._decoder.layer_norm(x)[:, :, PROMPT:]

    def exact(self, name: str, x: Tensor) -> Tensor:
        """The product that the model has."""
        return x @ self.weights[name].T

    def predict(self, hidden: Tensor) -> list[Tensor]:
        """Logits of each text (positions, vocabulary) from final hidden states (states, texts, positions, width)."""
        return [text @ self.whisper.proj_out.weight.T for text in hidden.flatten(0, 1)]

    def kl_divergence(self, exact: Sequence[Tensor], hidden: Tensor) -> KlDivergence:
        """Between the exact model's logits and those from final hidden states, both (texts, positions)."""
        found = [
            kernels.kl_divergence(
                logits.numpy(), (text @ self.whisper.proj_out.weight.T).numpy(), threads=usable_threads()
            )
            for logits, text in zip(exact, hidden.flatten(0, 1), strict=True)
        ]
        return KlDivergence(np.stack([one.kl for one in found]), np.stack([one.same_top for one in found]))


def _heads(x: Tensor) -> Tensor:
    """(..., positions, width) to (all, heads, positions, head size)."""
    return x.flatten(0, -3).unflatten(-1, (whisper_model.CONFIG.decoder_attention_heads, -1)).transpose(1, 2)


# Text


@dataclass(frozen=True)
class Passages:
    """Texts after their prompts, each heard with each of some sounds."""

    ids: Tensor
    """(states, texts, positions)."""
    states: Tensor
    """The encoder's, (states, frames, width)."""


class Corpora:
    """Texts and sounds, each made once."""

    def __init__(self, decoder: Decoder, directory: Path):
        self._decoder, self._directory = decoder, directory
        self.states = cache(self._states)
        self._texts = {
            "prose": whisper_model.prose_texts(directory),
            "django": whisper_model.django_texts(directory),
        }

    def calibration(self, corpus: str, portion: int, length: int, *, english: bool) -> Passages:
        """What is calibrated on: in all languages, or in English as often."""
        languages = ("en",) * len(LANGUAGES) if english else LANGUAGES
        return Passages(self._ids(corpus, languages, STATES, length, portion), self.states(STATES, portion))

    def evaluation(self, corpus: str) -> Passages:
        """What runs that were calibrated on something else are evaluated on."""
        ids = self._ids(corpus, LANGUAGES, EVALUATION_STATES, EVALUATION_LENGTH)
        return Passages(ids, self.states(EVALUATION_STATES, EVALUATION_SEED))

    def _states(self, count: int, seed: int) -> Tensor:
        return whisper_model.encoder_states(self._decoder.whisper, count, seed)

    def _ids(
        self, corpus: str, languages: Sequence[str], states: int, length: int, portion: int = 0
    ) -> Tensor:
        """Texts of `length` tokens, no two alike; a language whose corpus is too short begins again."""
        windows = {}
        for language in dict.fromkeys(languages):
            tokens = [
                token
                for text in self._texts[corpus][language]
                for token in whisper_model.tokenize(self._directory, f" {text}")
            ]
            start = portion * states * languages.count(language) * length
            windows[language] = islice(cycle(tokens), start, None)
        prompts = {language: whisper_model.prompt(language, self._directory) for language in windows}
        return torch.tensor(
            [
                [[*prompts[language], *islice(windows[language], length)] for language in languages]
                for _ in range(states)
            ]
        )


Calibration = tuple[Passages, dict[str, Tensor]]
"""Texts, and the input of each linear that the exact model makes of them."""


# Rounding


@dataclass(frozen=True)
class Rounding:
    """How weights become blocks."""

    method: str = "feedback"
    """`plain`, `importance` or `feedback`."""
    block: int = BLOCK
    rounded_inputs: bool = True


PLAIN, IMPORTANCE, FEEDBACK = Rounding("plain"), Rounding("importance"), Rounding()


@dataclass(frozen=True)
class Run:
    """One configuration that is measured."""

    rounding: Rounding = FEEDBACK
    types: str = GgmlType.Q4_K.name
    """A type for all linears, or see `Bench.types`."""
    corpus: str = "prose"
    portion: int = 0
    """Of the corpus; the sounds are others too."""
    english: bool = False
    length: int = LENGTH


class Rounder:
    """Rounds each linear when its product is asked for, and keeps the rounded weights."""

    def __init__(
        self,
        decoder: Decoder,
        types: Mapping[str, GgmlType],
        rounding: Rounding,
        inputs: Mapping[str, Tensor],
    ):
        """`inputs` are the linears' in the exact model."""
        self._decoder, self._types, self._rounding, self._inputs = decoder, types, rounding, inputs
        self._seen: Tensor | None = None
        self.rounded: dict[str, Tensor] = {}

    def run(self, passages: Passages) -> dict[str, Tensor]:
        """All linears as rounded for `passages`."""
        if self._rounding.method == "feedback" and self._rounding.rounded_inputs:
            self._decoder.run(passages, self._product)
        else:
            for name, x in self._inputs.items():
                self._round(name, x)
        return self.rounded

    def _product(self, name: str, x: Tensor) -> Tensor:
        self._round(name, x, self._inputs[name])
        return x @ self.rounded[name].T

    def _round(self, name: str, x: Tensor, targets: Tensor | None = None) -> None:
        if x is not self._seen:  # linears that share an input share its covariance
            self._gptq = GptqEncoder(_hessian(x, targets, self._rounding.block), threads=usable_threads())
            self._seen = x
        weights, kind = self._decoder.weights[name].numpy(), self._types[name]
        if self._rounding.method == "feedback":
            blocks = self._gptq.encode(weights, kind)
        else:
            blocks = encode(weights, kind, self._gptq.importance)
        self.rounded[name] = torch.from_numpy(decode(blocks, kind))


def round_plain(decoder: Decoder, types: Mapping[str, GgmlType]) -> dict[str, Tensor]:
    """All linears as rounded without calibration."""
    return {
        name: torch.from_numpy(decode(encode(weights.numpy(), types[name]), types[name]))
        for name, weights in decoder.weights.items()
    }


def _hessian(x: Tensor, targets: Tensor | None = None, block: int = SUPER_BLOCK) -> Hessian:
    """Of inputs (..., columns), and what they should be."""
    rows: FloatArray = x.flatten(0, -2).numpy()
    hessian = Hessian(x.shape[-1], block, targets=targets is not None)
    wanted = None if targets is None else targets.flatten(0, -2).numpy()
    hessian.add(rows, np.ones(len(rows), np.float32), wanted)
    return hessian


# Types


def fixed_rule(decoder: Decoder) -> dict[str, GgmlType]:
    """Q4_K_M's: in some layers Q6_K for the linears that stand for attn_v and ffn_down (llama-quant.cpp)."""
    eighth = decoder.layers // 8

    def kind(name: str) -> GgmlType:
        layer, linear = int(name.split(".")[0]), name.split(".")[-1]
        more = layer < eighth or layer >= 7 * decoder.layers // 8 or (layer - eighth) % 3 == 2
        return GgmlType.Q6_K if more and linear in ("v_proj", "fc2") else GgmlType.Q4_K

    return {name: kind(name) for name in decoder.weights}


def choice_of(weights: Tensor, kind: GgmlType, loss: float = 0.0) -> Choice:
    rows, columns = weights.shape
    return Choice(kind, rows * kind.row_bytes(columns), loss)


def group_of(name: str, layers: int) -> str:
    """Kind of linear and third of the layers."""
    layer, linear = name.split(".", 1)
    return f"{linear}, {THIRDS[3 * int(layer) // layers]} third"


class Sensitivity:
    """What each type would cost in each linear, in nats: the same steps as `ayaedge_export.best.sensitivity`."""

    def __init__(self, decoder: Decoder, passages: Passages, inputs: Mapping[str, Tensor]):
        self._decoder, self._inputs = decoder, inputs
        self._few = Passages(passages.ids[:1, :, : PROMPT + PROBE_LENGTH], passages.states[:1])
        self._losses: dict[str, dict[str, float]] = {}
        self._probes: dict[str, dict[str, Tensor]] = {}
        self._probe_losses: dict[str, float] = {}

    def measure(self) -> dict[str, dict[str, float]]:
        """Losses by linear and type."""
        for name, x in self._inputs.items():
            self._measure(name, _hessian(x))
        sensitivities = self._sensitivities()
        return {
            name: {
                kind: loss * sensitivities[group_of(name, self._decoder.layers)] for kind, loss in of.items()
            }
            for name, of in self._losses.items()
        }

    def _measure(self, name: str, hessian: Hessian) -> None:
        weights: FloatArray = self._decoder.weights[name].numpy()
        gptq = GptqEncoder(hessian, threads=usable_threads())
        self._losses[name] = {
            kind.name: hessian.loss(decode(gptq.encode(weights, kind), kind) - weights) for kind in KINDS
        }
        rounded = decode(encode(weights, PROBE, hessian.mean_squares), PROBE)
        group = group_of(name, self._decoder.layers)
        self._probes.setdefault(group, {})[name] = torch.from_numpy(rounded)
        self._probe_losses[group] = self._probe_losses.get(group, 0.0) + hessian.loss(rounded - weights)

    def _sensitivities(self) -> dict[str, float]:
        """Nats for each unit of a group's loss: the beginnings of some texts with that group rounded."""
        exact = self._decoder.predict(self._decoder.run(self._few, self._decoder.exact))
        found = {}
        for group, rounded in self._probes.items():
            hidden = self._decoder.run(self._few, product_of(self._decoder, rounded))
            found[group] = (
                float(self._decoder.kl_divergence(exact, hidden).kl.mean()) / self._probe_losses[group]
            )
        return found


def product_of(decoder: Decoder, rounded: Mapping[str, Tensor]) -> Product:
    """Products with some linears rounded."""
    return lambda name, x: x @ rounded.get(name, decoder.weights[name]).T


# Measuring


@dataclass(frozen=True)
class Score:
    """How far the rounded model's predictions are from the exact one's."""

    kld: dict[str, float]
    """Mean KL divergence by language, nats."""
    top: float
    """Share of positions with the same likeliest token."""
    bits: float
    """Bits per weight of the linears."""

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.kld.values())))

    def ratio(self, other: Score) -> float:
        """This divergence to another one."""
        return self.mean / other.mean

    def worst(self, other: Score) -> tuple[float, str]:
        """The largest ratio of a language, and which."""
        return max((self.kld[language] / other.kld[language], language) for language in self.kld)


class Bench:
    """Measures what has not been measured yet."""

    def __init__(self, directory: Path, results: Path = RESULTS):
        self._directory, self._path = directory, results
        self._results: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
        # gigabytes each, so only the last one is kept
        self._calibration = lru_cache(maxsize=1)(self._calibrated_on)
        self._evaluation = lru_cache(maxsize=1)(self._evaluated_on)

    @cached_property
    def decoder(self) -> Decoder:
        return Decoder(self._directory)

    @cached_property
    def corpora(self) -> Corpora:
        return Corpora(self.decoder, self._directory)

    def score(self, run: Run) -> Score:
        return Score(**self._kept(_key(run), lambda: asdict(self._score(run))))

    def types(self, name: str) -> dict[str, GgmlType]:
        """By a type's name, `rule`, or `allocation SHARE` of its bytes; with ` own` behind it of the rule's types."""
        if name == "rule":
            return fixed_rule(self.decoder)
        if not name.startswith("allocation"):
            return dict.fromkeys(self.decoder.weights, GgmlType[name])
        return {of: choice.kind for of, choice in self.allocation(name).items()}

    def allocation(self, name: str) -> dict[str, Choice]:
        """The choices that `types` gives for `allocation ...`."""
        types = fixed_rule(self.decoder)
        rule = self.choices(types).values()
        _, share, *own = name.split()
        items = {
            of: [
                choice_of(weights, kind, self._losses[of][kind.name])
                for kind in KINDS
                if not own or kind in types.values()
            ]
            for of, weights in self.decoder.weights.items()
        }
        return allocate(items, int(float(share) * bytes_of(rule)))

    def choices(self, types: Mapping[str, GgmlType]) -> dict[str, Choice]:
        """These types with their losses."""
        return {
            name: choice_of(weights, types[name], self._losses[name].get(types[name].name, 0.0))
            for name, weights in self.decoder.weights.items()
        }

    @cached_property
    def _losses(self) -> dict[str, dict[str, float]]:
        def measure() -> dict[str, dict[str, float]]:
            return Sensitivity(self.decoder, *self._calibration(*_text_of(Run()))).measure()

        losses: dict[str, dict[str, float]] = self._kept("survey", measure)
        return losses

    def _score(self, run: Run) -> Score:
        types = self.types(run.types)
        if run.rounding.method == "plain":
            rounded = round_plain(self.decoder, types)
        else:
            passages, inputs = self._calibration(*_text_of(run))
            rounded = Rounder(self.decoder, types, run.rounding, inputs).run(passages)
        passages, exact = self._evaluation(OTHER[run.corpus])
        found = self.decoder.kl_divergence(
            exact, self.decoder.run(passages, product_of(self.decoder, rounded))
        )
        by_language = found.kl.reshape(len(passages.ids), len(LANGUAGES), -1).mean(axis=(0, 2))
        stored = sum(choice_of(weights, types[name]).nbytes for name, weights in self.decoder.weights.items())
        bits = 8 * stored / sum(weights.numel() for weights in self.decoder.weights.values())
        return Score(
            dict(zip(LANGUAGES, by_language.tolist(), strict=True)), float(found.same_top.mean()), bits
        )

    def _calibrated_on(self, corpus: str, portion: int, length: int, english: bool) -> Calibration:
        passages = self.corpora.calibration(corpus, portion, length, english=english)
        inputs: dict[str, Tensor] = {}

        def product(name: str, x: Tensor) -> Tensor:
            inputs[name] = x
            return self.decoder.exact(name, x)

        self.decoder.run(passages, product)
        return passages, inputs

    def _evaluated_on(self, corpus: str) -> tuple[Passages, list[Tensor]]:
        """Texts, and the exact model's predictions."""
        passages = self.corpora.evaluation(corpus)
        return passages, self.decoder.predict(self.decoder.run(passages, self.decoder.exact))

    def _kept(self, key: str, measure: Callable[[], Any]) -> Any:
        if key not in self._results:
            self._results[key] = measure()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".part")
            temporary.write_text(json.dumps(self._results, indent=1))
            temporary.replace(self._path)
        return self._results[key]


def _text_of(run: Run) -> tuple[str, int, int, bool]:
    """What tells calibration texts apart."""
    return run.corpus, run.portion, run.length, run.english


def _key(run: Run) -> str:
    """What sets the run apart: `types, method; name=value, ...` of everything that is not the default."""
    default, fields = asdict(Run()), asdict(run)
    other = {name: value for name, value in (fields | fields["rounding"]).items() if name != "rounding"}
    usual = default | default["rounding"]
    named = [
        f"{name}={value}"
        for name, value in other.items()
        if name not in ("types", "method") and value != usual[name]
    ]
    return ", ".join([run.types, run.rounding.method, *named])


# Parts


def show_methods(bench: Bench) -> None:
    """All linears in Q4_K."""
    whole = 2048  # columns of the widest linear
    runs = {
        "plain": Run(PLAIN),
        "importance matrix": Run(IMPORTANCE),
        "error feedback in 1024 columns, exact inputs": Run(Rounding(rounded_inputs=False)),
        "error feedback in 256 columns": Run(Rounding(block=256)),
        "error feedback in 512 columns": Run(Rounding(block=512)),
        "error feedback in 1024 columns (default)": Run(),
        "error feedback in 2048 columns, all there are": Run(Rounding(block=whole)),
    }
    _score_table(bench, runs, Run(IMPORTANCE))
    print("Calibration and evaluation swapped:\n")
    swapped = {
        "importance matrix": Run(IMPORTANCE, corpus="django"),
        "error feedback in 1024 columns (default)": Run(corpus="django"),
    }
    _score_table(bench, swapped, Run(IMPORTANCE, corpus="django"))


def show_allocation(bench: Bench) -> None:
    """Types at a budget, all with error feedback unless said."""
    runs = {
        "fixed rule, importance matrix": Run(IMPORTANCE, "rule"),
        "fixed rule": Run(types="rule"),
        "chosen, the rule's bytes and types (at most 0.85)": Run(types="allocation 1.0 own"),
        "chosen, the rule's bytes, all types": Run(types="allocation 1.0"),
        "chosen, 0.94 of the bytes (at most 1)": Run(types="allocation 0.94"),
    }
    _score_table(bench, runs, Run(types="rule"))
    rows = [
        [
            name,
            f"{loss_of(bench.choices(bench.types(run.types)).values()):.4f}",
            f"{bench.score(run).mean:.4f}",
        ]
        for name, run in list(runs.items())[1:]
    ]
    _table(["types", "predicted KLD", "measured"], rows)
    _table(
        ["linears by type", *(kind.name for kind in KINDS)],
        [
            [name, *(list(bench.types(run.types).values()).count(kind) for kind in KINDS)]
            for name, run in list(runs.items())[1:]
        ],
    )


def show_noise(bench: Bench) -> None:
    """Pairs of runs with other calibration texts and sounds; the types are those of the first."""
    pairs = {
        "error feedback to importance matrix, all Q4_K": (Run(IMPORTANCE), Run()),
        "chosen types to the rule's": (Run(types="rule"), Run(types="allocation 1.0 own")),
    }
    for name, (baseline, ours) in pairs.items():
        rows, ratios = [], []
        for portion in range(PORTIONS):
            one, other = (bench.score(replace(run, portion=portion)) for run in (baseline, ours))
            ratios.append(other.ratio(one))
            worst, language = other.worst(one)
            rows.append(
                [
                    portion,
                    f"{one.mean:.4f}",
                    f"{other.mean:.4f}",
                    f"{ratios[-1]:.3f}",
                    f"{worst:.2f} {language}",
                ]
            )
        _table(["portion", "before", name, "ratio", "worst language"], rows)
        print(f"Ratio: mean {np.mean(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}.\n")


def show_languages(bench: Bench) -> None:
    """As many tokens of English as of all languages together, from the corpus that has them."""
    each = Run(corpus="django", length=ENGLISH_LENGTH)
    rows, wins = [], {}
    for method, rounding in (("importance matrix", IMPORTANCE), ("error feedback", FEEDBACK)):
        every = bench.score(replace(each, rounding=rounding))
        english = bench.score(replace(each, rounding=rounding, english=True))
        others = [language for language in LANGUAGES if language != "en"]
        wins[method] = sum(every.kld[language] < english.kld[language] for language in others)
        for name, score in (("23 languages", every), ("English", english)):
            other = np.mean([score.kld[language] for language in others])
            rows.append([f"{method}, {name}", f"{score.mean:.4f}", f"{score.kld['en']:.4f}", f"{other:.4f}"])
    plain = bench.score(Run(PLAIN, corpus="django"))
    rows.insert(0, ["plain", f"{plain.mean:.4f}", f"{plain.kld['en']:.4f}", ""])
    _table(["calibration", "mean KLD", "English", "other languages"], rows)
    for method, count in wins.items():
        print(f"{method}: 23 languages are better for {count} of the 22 other languages.")
    print()


def show_chart(bench: Bench, path: Path) -> None:
    """Divergence against size, as a table and drawn."""
    types = [kind.name for kind in KINDS]
    series = {
        "plain": [Run(PLAIN, kind) for kind in types],
        "importance matrix": [Run(IMPORTANCE, kind) for kind in types],
        "error feedback": [Run(types=kind) for kind in types],
        "error feedback, chosen types": [Run(types=f"allocation {share}") for share in SHARES],
        "Q4_K_M's types, importance matrix": [Run(IMPORTANCE, "rule")],
        "Q4_K_M's types, error feedback": [Run(types="rule")],
    }
    points = {name: [(run, bench.score(run)) for run in runs] for name, runs in series.items()}
    rows = [
        [name, run.types, f"{score.bits:.3f}", f"{score.mean:.5f}", f"{score.top:.2%}"]
        for name, found in points.items()
        for run, score in found
    ]
    _table(["series", "types", "bits per weight", "mean KLD", "top-1"], rows)
    labels = [(score, run.types) for run, score in points["plain"]]
    draw_points(
        path,
        {name: [(score.bits, score.mean) for _, score in found] for name, found in points.items()},
        [(score.bits, score.mean, label) for score, label in labels],
    )


def _score_table(bench: Bench, runs: Mapping[str, Run], baseline: Run) -> None:
    rows = []
    for name, run in runs.items():
        score, other = bench.score(run), bench.score(baseline)
        worst, language = score.worst(other)
        rows.append(
            [name, f"{score.bits:.3f}", f"{score.mean:.4f}", f"{score.ratio(other):.3f}", f"{worst:.2f} {language}",
             f"{score.top:.2%}"]
        )  # fmt: skip
    _table(["weights", "bits", "mean KLD", "ratio", "worst language", "top-1"], rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(map(str, row))} |")
    print(flush=True)


PARTS: Mapping[str, Callable[[Bench], None]] = {
    "methods": show_methods,
    "allocation": show_allocation,
    "noise": show_noise,
    "languages": show_languages,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, default=whisper_model.DIRECTORY)
    parser.add_argument("--chart", type=Path, default=Path("docs/four_bits.png"))
    parser.add_argument("--only", nargs="+", metavar="PART", choices=[*PARTS, "chart"])
    arguments = parser.parse_args()
    torch.set_num_threads(min(2, usable_threads()))
    torch.set_grad_enabled(False)
    bench = Bench(whisper_model.fetch(arguments.directory))
    parts: dict[str, Callable[[Bench], None]] = {**PARTS, "chart": partial(show_chart, path=arguments.chart)}
    for name in arguments.only or parts:
        print(f"## {name}\n")
        parts[name](bench)


if __name__ == "__main__":
    main()
