"""Loss of a part and its perplexity, every token weighing the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from dsee.processes import spread
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
    means would not be. Several processes share the batches out.

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
    parts: list[list[int]] = []
    at = len(order)
    while at > 0:
        # the longest first: what fits now fits later
        longest = len(data.features[order[at - 1]]["input_ids"])
        size = min(64, max(1, LOGITS // (4 * vocabulary * longest)))
        parts.append(order[max(0, at - size) : at])
        at -= len(parts[-1])

    def ask(part: list[int]) -> tuple[float, int]:
        batch = collate([data.features[i] for i in part])
        labels = batch.pop("labels")[:, 1:].flatten()
        logits = torch.as_tensor(run(batch))[:, :-1].float().flatten(0, 1)
        found = torch.nn.functional.cross_entropy(
            logits, labels.to(logits.device), ignore_index=IGNORED, reduction="sum"
        )
        return float(found), int((labels != IGNORED).sum())

    def done(finished: list[list[int]]) -> None:
        if progress:
            progress(sum(map(len, finished)))

    sums = spread(parts, ask, done)
    total, count = 0.0, 0
    for part_total, part_count in sums:
        total += part_total
        count += part_count
    loss = total / max(1, count)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": float(count)}
