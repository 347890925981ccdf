"""The network as it is trained: with auxiliary heads on the image tokens, and losses for tiles and answers."""

from __future__ import annotations

import torch
from batches import IGNORE, LABEL_SIZES, QuestionBatch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AyaVisionForConditionalGeneration


class TrainingModel(nn.Module):  # type: ignore[misc]
    """The network together with the auxiliary heads that training alone uses."""

    def __init__(self, network: AyaVisionForConditionalGeneration) -> None:
        super().__init__()
        self.network = network
        hidden = network.config.text_config.hidden_size
        self.heads = nn.Linear(hidden, sum(LABEL_SIZES.values()))
        for name, parameter in network.named_parameters():
            # the features are taken before this norm, so it never gets a gradient
            parameter.requires_grad_("post_layernorm" not in name)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Connector outputs of tiles (n, 3, S, S): (n, tokens, hidden)."""
        features: Tensor = self.network.model.get_image_features(pixels)
        return features.flatten(1, -2)

    def tile_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Sum of the heads' cross-entropies, each tile's labels asked of each of its tokens."""
        # (n, tokens, classes) -> (n * tokens, classes); labels (n, heads) -> (n * tokens, heads)
        scores = self.heads(features.float()).flatten(0, 1)
        targets = labels.repeat_interleave(features.shape[1], dim=0)
        losses = [
            functional.cross_entropy(part, target, ignore_index=IGNORE)
            for part, target in zip(scores.split([*LABEL_SIZES.values()], dim=1), targets.T, strict=True)
            if bool((target != IGNORE).any())
        ]
        return torch.stack(losses).sum()

    def answer_scores(self, batch: QuestionBatch, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits (m, vocabulary) for the m answer tokens of a batch, and the right tokens (m,)."""
        decoder = self.network.model.language_model
        embeddings = decoder.embed_tokens(batch.ids)
        if features is not None:
            # (B * n, tokens, hidden) -> (B, n * tokens, hidden)
            rows = features.reshape(len(batch.ids), -1, features.shape[-1]).to(embeddings.dtype)
            embeddings = embeddings.index_copy(1, batch.image_places, rows)
        hidden = decoder(
            inputs_embeds=embeddings,
            attention_mask=batch.masks(self.network.config.text_config.sliding_window),
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        # what follows the last token of a branch belongs to the next one, whose first label is IGNORE
        targets = batch.labels[:, 1:]
        chosen = targets != IGNORE
        return self.network.lm_head(hidden[:, :-1][chosen]).float(), targets[chosen]

    def digit_accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of digits the heads get right, the tokens of a tile taken together."""
        with torch.no_grad():
            scores = self.heads(features.float()).mean(1)
        digit_scores = scores.split([*LABEL_SIZES.values()], dim=1)[3:7]
        targets = labels[:, 3:7]
        guesses = torch.stack([part.argmax(1) for part in digit_scores], dim=1)
        return float((guesses == targets)[targets != IGNORE].float().mean())
