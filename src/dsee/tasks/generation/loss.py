"""Loss of a part and its perplexity, every token weighing the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from dsee.tasks.generation.encode import EncodedText
from dsee.tasks.generation.pack import IGNORED

#: Bytes of fp32 logits that one batch may fill; a vocabulary of 50,000 fills them with 1,300 tokens.
LOGITS = 256 * 2**20


def text_loss(
    run: Callable[[dict[str, Any]], Any],
    data: EncodedText,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    vocabulary: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Return mean loss and perplexity over the learned tokens of a part.

    The sum of -ln p over all tokens divided by their number: the same whatever the batches. A mean of the batches'
    means would not be.

    Args:
        run: logits of one batch, (batch, tokens, vocabulary), a tensor or an array.
        data: the part.
        collate: makes a padded batch.
        vocabulary: size of the vocabulary; decides how many tokens go into a batch.
        progress: called with the number of sequences done since the last call.

    Returns:
        "loss" in nats a token, "perplexity" = exp(loss), "tokens" counted.
    """
    order = sorted(range(len(data)), key=lambda i: (len(data.features[i]["input_ids"]), i))
    total, count, at = 0.0, 0, len(order)
    while at > 0:
        # the longest first: what fits now fits later
        longest = len(data.features[order[at - 1]]["input_ids"])
        size = min(64, max(1, LOGITS // (4 * vocabulary * longest)))
        rows = [data.features[i] for i in order[max(0, at - size) : at]]
        at -= len(rows)
        batch = collate(rows)
        labels = batch.pop("labels")[:, 1:].flatten()
        logits = torch.as_tensor(run(batch))[:, :-1].float().flatten(0, 1)
        total += float(
            torch.nn.functional.cross_entropy(logits, labels.to(logits.device), ignore_index=IGNORED, reduction="sum")
        )
        count += int((labels != IGNORED).sum())
        if progress:
            progress(len(rows))
    loss = total / max(1, count)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": float(count)}
