"""Writing texts with a causal model: prompts in batches, filled up on the left, greedily or with beams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, NoRepeatNGramLogitsProcessor

from dsee.errors import InputError
from dsee.measure.sample import longest_input
from dsee.modes import evaluating
from dsee.processes import spread
from dsee.runtime.generation import until_end
from dsee.tasks.generation.spec import DecodingSpec


class NoRepeatInAnswer(LogitsProcessor):
    """No n-gram twice in what is written; transformers' own rule would forbid to repeat the prompt's names too."""

    def __init__(self, size: int, prompt: int) -> None:
        """Set up.

        Args:
            size: n.
            prompt: tokens of the prompt, padding included, that do not count.
        """
        self.rule, self.prompt = NoRepeatNGramLogitsProcessor(size), prompt

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return scores with what would repeat an n-gram at -inf."""
        return self.rule(input_ids[:, self.prompt :], scores)


def write_texts(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    decoding: DecodingSpec,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Write a text after each prompt.

    Prompts of like length share a batch. Rows are filled up on the left and masked there, so the batch changes no
    text but for the rounding of sums. Several processes share the batches out.

    Args:
        model: a causal model, with or without an update; left in the mode it was in.
        tokenizer: its tokenizer.
        prompts: token ids of each prompt, at least one each.
        decoding: how.
        progress: called with the number of texts written since the last call.

    Returns:
        The texts, in the prompts' order, special tokens and outer blanks left out.

    Raises:
        InputError: a prompt and the longest text are together longer than the model's positions.
    """
    longest = max((len(prompt) for prompt in prompts), default=0)
    if longest + decoding.max_new_tokens > longest_input(model):
        raise InputError(
            f"generation.decoding: a prompt of {longest} tokens and max_new_tokens={decoding.max_new_tokens} are more "
            f"than the {longest_input(model)} positions of this model. Lower max_new_tokens, or shorten the prompts."
        )
    end = int(tokenizer.eos_token_id)
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    texts = [""] * len(prompts)
    parts = [order[at : at + decoding.batch_size] for at in range(0, len(order), decoding.batch_size)]

    def write(places: list[int]) -> list[str]:
        rows = _batch(model, [prompts[i] for i in places], end, decoding)
        return [str(tokenizer.decode(until_end(row, {end}), skip_special_tokens=True)).strip() for row in rows]

    def done(finished: list[list[int]]) -> None:
        if progress:
            progress(sum(map(len, finished)))

    with evaluating(model), torch.inference_mode():
        found = spread(parts, write, done)
    for places, written in zip(parts, found, strict=True):
        for i, text in zip(places, written, strict=True):
            texts[i] = text
    return texts


def _batch(model: Any, prompts: list[list[int]], end: int, decoding: DecodingSpec) -> list[list[int]]:
    """New tokens of each prompt."""
    width = max(map(len, prompts))
    ids = torch.tensor([[*[end] * (width - len(row)), *row] for row in prompts])
    mask = torch.tensor([[*[0] * (width - len(row)), *[1] * len(row)] for row in prompts])
    device = next(model.parameters()).device
    rules = LogitsProcessorList()
    if decoding.no_repeat_ngram:
        rules.append(NoRepeatInAnswer(decoding.no_repeat_ngram, width))
    beams: dict[str, Any] = {}
    if decoding.beams > 1:
        beams = {"length_penalty": decoding.length_penalty, "early_stopping": False}
    found = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        logits_processor=rules,
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        num_beams=decoding.beams,
        eos_token_id=end,
        pad_token_id=end,
        **beams,
    )
    rows: list[list[int]] = found[:, width:].tolist()
    return rows
