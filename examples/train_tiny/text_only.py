"""Train the decoder of a checkpoint on text alone: `python examples/train_tiny/text_only.py CHECKPOINT --out DIR`.

The result is a plain language model (Cohere2) with the checkpoint's tokenizer. It knows the texts of questions and
answers better than the checkpoint, which was never asked to write a question, and forgets pictures: a base to merge
with (`ayaedge export --merge`). A minute or two on two idle CPU cores.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import scenes
import torch
from PIL import Image
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    AyaVisionForConditionalGeneration,
    Cohere2ForCausalLM,
    PreTrainedTokenizerBase,
)

STEPS = 120
ROWS, LENGTH = 8, 128
"""Sequences of a batch, and their tokens."""
RATE = 1e-3
WARM_UP = 10


def texts(seed: str) -> Iterator[str]:
    """Questions and answers in all languages, a line each, as text without a picture."""
    rng = random.Random(seed)
    blank = Image.new("RGB", (1, 1))
    while True:
        language = rng.choice(scenes.LANGUAGES)
        layout = rng.choice(scenes.LAYOUTS)
        items = tuple(scenes.draw_item(rng, held_out=False) for _ in layout.positions)
        scene = scenes.Scene(layout, items, blank)
        yield "".join(
            f"{text}\n" for text in scenes.ask(scene, language, rng.choice(scenes.possible_tasks(scene)), rng)
        )


def sequences(tokenizer: PreTrainedTokenizerBase, seed: str, length: int = LENGTH) -> Iterator[list[int]]:
    """Token ids of such texts, one after the other, cut into pieces that begin with BOS."""
    ids: list[int] = []
    for text in texts(seed):
        ids += tokenizer.encode(text, add_special_tokens=False)
        while len(ids) >= length - 1:
            yield [tokenizer.bos_token_id, *ids[: length - 1]]
            del ids[: length - 1]


def language_model(checkpoint: Path) -> Cohere2ForCausalLM:
    """The decoder of a checkpoint as a model of its own, float32."""
    whole = AyaVisionForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, local_files_only=True
    )
    alone = Cohere2ForCausalLM(whole.config.text_config)
    alone.model.load_state_dict(whole.model.language_model.state_dict())
    alone.tie_weights()
    return alone


def train(
    model: Cohere2ForCausalLM, tokenizer: PreTrainedTokenizerBase, steps: int, seed: str = "text only"
) -> float:
    """Teach the model to write these texts; returns the last steps' mean loss in nats."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, betas=(0.9, 0.98))
    source = sequences(tokenizer, seed)
    losses: list[float] = []
    model.train()
    for step in range(steps):
        ids = torch.tensor([next(source) for _ in range(ROWS)])
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP) * (1 - step / steps)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-10:]) / len(losses[-10:])


def write_text_only_base(checkpoint: Path, target: Path, steps: int = STEPS) -> float:
    """Train and save such a model in bfloat16; returns the last loss in nats."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    model = language_model(checkpoint)
    loss = train(model, tokenizer, steps)
    model.to(torch.bfloat16).save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(checkpoint / name, target / name)
    config = json.loads((target / "config.json").read_text("utf-8"))
    (target / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}, indent=2))
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="directory for the language model")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"loss {write_text_only_base(args.checkpoint, args.out, args.steps):.3f} nats")


if __name__ == "__main__":
    main()
