"""Tokens, packed or not, with a loss on what is to be written alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsee.errors import InputError
from dsee.tasks.bad_rows import BadRows, RowError
from dsee.tasks.generation.pack import IGNORED, blocks, end_token, packed, text_ids
from dsee.tasks.generation.rows import Example
from dsee.tasks.generation.spec import GenerationSpec
from dsee.tasks.spec import Policy


class EncodedText(torch.utils.data.Dataset[dict[str, Any]]):
    """One part of a task as token ids, ready for a Trainer.

    Attributes:
        features: for each sequence ``input_ids`` and ``labels``, and ``position_ids`` if it holds several examples.
        examples: what they were made from.
        prompts: token ids that a text is to be written after; none in plain text.
        shortened: examples whose target was cut at the longest length.
        skipped: place and size of the examples that were left out for their length.
    """

    def __init__(
        self,
        examples: list[Example],
        tokenizer: Any,
        max_length: int,
        spec: GenerationSpec,
        kind: str,
        *,
        packs: bool | None = None,
        too_long: Policy = "truncate",
        bad: BadRows | None = None,
    ) -> None:
        """Tokenize.

        Args:
            examples: the part.
            tokenizer: the model's tokenizer.
            max_length: longest sequence in tokens.
            spec: the recipe's section.
            kind: one of :data:`dsee.tasks.generation.KINDS`.
            packs: overrides the recipe, which packs what is learned from only.
            too_long: what becomes of longer examples, see :func:`fitted`.
            bad: takes those that cannot be used; without it the first one is an error.

        Raises:
            InputError: a prompt leaves no room for a text, or the tokenizer has no token that ends texts.
        """
        self.examples, self.prompts, self.skipped = examples, [], []
        self.shortened = 0
        if kind == "language-modelling":
            # lines that keep their end run on; paragraphs without one are texts of their own
            run_on = any(e.target.endswith("\n") for e in examples)
            self.features = blocks(text_ids(examples, tokenizer, run_on=run_on), max_length)
            return
        faults = BadRows() if bad is None else bad
        kept, rows = [], []
        for example, (prompt, target) in zip(examples, encoder(tokenizer, spec, kind)(examples), strict=True):
            size = len(prompt) + len(target)
            try:
                row = fitted(prompt, target, max_length, too_long)
            except RowError as fault:
                faults.add(example.place, fault)
                continue
            if row is None:
                self.skipped.append(f"{example.place}: {size} tokens")
                continue
            self.shortened += size > max_length
            kept.append(example)
            rows.append(row)
            self.prompts.append(prompt)
        if bad is None:
            faults.check()
        self.examples = kept
        self.features = packed(rows, max_length) if (spec.packed if packs is None else packs) else rows

    @classmethod
    def of(cls, features: list[dict[str, Any]]) -> EncodedText:
        """Return a part made of sequences.

        Args:
            features: see above.
        """
        found = cls.__new__(cls)
        found.features, found.examples, found.prompts, found.skipped = features, [], [], []
        found.shortened = 0
        return found

    def __len__(self) -> int:
        return len(self.features)

    def head(self, limit: int) -> EncodedText:
        """Return the first sequences.

        Args:
            limit: how many.
        """
        return EncodedText.of(self.features[:limit])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.features[index]


def fitted(prompt: list[int], target: list[int], max_length: int, too_long: Policy) -> dict[str, Any] | None:
    """Return a sequence with a loss on the target alone; None if it is left out for its length.

    Args:
        prompt: token ids.
        target: token ids.
        max_length: longest sequence.
        too_long: "truncate" cuts the target's end, "skip" leaves the example out, "error" makes it a bad row.

    Raises:
        RowError: it is too long, and not to be left out; whatever is wanted, a prompt that fills the whole length.
    """
    size = len(prompt) + len(target)
    if size > max_length and too_long == "skip":
        return None
    if len(prompt) >= max_length:
        reason = f"the prompt has {len(prompt)} tokens and leaves no room for a text (max_length={max_length})."
        raise RowError("too long", reason)
    if size > max_length and too_long == "error":
        raise RowError("too long", f"{size} tokens, and max_length is {max_length}.")
    ids = (prompt + target)[:max_length]
    return {"input_ids": ids, "labels": [IGNORED] * len(prompt) + ids[len(prompt) :]}


def encoder(
    tokenizer: Any, spec: GenerationSpec, kind: str
) -> Callable[[list[Example]], list[tuple[list[int], list[int]]]]:
    """Return a function from examples to token ids of prompt and target, the end of the text included.

    Args:
        tokenizer: the model's tokenizer.
        spec: the recipe's section.
        kind: "data-to-text" or "instruction".

    Raises:
        InputError: ``chat: true`` without a template, or no token that ends texts.
    """
    end, chat = end_token(tokenizer), speaks_chat(tokenizer, spec, kind)

    def ids(texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def pairs(examples: list[Example]) -> list[tuple[list[int], list[int]]]:
        if chat:
            asked = [_chat(tokenizer, e) for e in examples]
            return list(zip(ids([a for a, _ in asked]), ids([b for _, b in asked]), strict=True))
        first = [] if tokenizer.bos_token_id in (None, end) else [tokenizer.bos_token_id]
        if spec.separator is None:
            # as LoRA's files: the token between texts stands between data and text too
            prompts = [[*first, *row, end] for row in ids([e.prompt for e in examples])]
            targets = ids([" " + e.target for e in examples])
        else:
            prompts = [[*first, *row] for row in ids([e.prompt + spec.separator for e in examples])]
            targets = ids([e.target for e in examples])
        return [(prompt, [*target, end]) for prompt, target in zip(prompts, targets, strict=True)]

    return pairs


def speaks_chat(tokenizer: Any, spec: GenerationSpec, kind: str) -> bool:
    """Whether prompts are written in the tokenizer's chat template.

    Args:
        tokenizer: the model's tokenizer.
        spec: the recipe's section.
        kind: one of :data:`dsee.tasks.generation.KINDS`.

    Raises:
        InputError: ``chat: true`` without a template.
    """
    template = bool(getattr(tokenizer, "chat_template", None))
    if spec.chat and not template:
        raise InputError("generation.chat: this tokenizer has no chat template. Leave the key out.")
    return kind == "instruction" and (template if spec.chat is None else spec.chat)


def _chat(tokenizer: Any, example: Example) -> tuple[str, str]:
    """Prompt and answer in the words of the chat template."""
    asked = [{"role": "user", "content": example.prompt}]
    whole = [*asked, {"role": "assistant", "content": example.target}]
    prompt = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    full = str(tokenizer.apply_chat_template(whole, tokenize=False))
    if not full.startswith(prompt):
        raise InputError(
            "generation.chat: this tokenizer's template writes an answered question differently from an open one, so "
            "prompt and answer cannot be told apart. Say chat: false."
        )
    return prompt, full[len(prompt) :]


def collate_text(tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Return a collator that fills up on the right.

    Packed rows get positions instead of a mask, from which transformers keeps their examples apart.

    Args:
        tokenizer: for the token to fill up with; what stands there is neither seen nor learned.
    """
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)

    def filled(rows: list[dict[str, Any]], key: str, value: int) -> torch.Tensor:
        longest = max(len(row["input_ids"]) for row in rows)
        return torch.tensor([[*row[key], *[value] * (longest - len(row[key]))] for row in rows])

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {"input_ids": filled(rows, "input_ids", pad), "labels": filled(rows, "labels", IGNORED)}
        if "position_ids" in rows[0]:
            # 0 again and again: each filler is an example of its own. With a cache, which they make even while
            # learning, models do not look for examples in the positions
            return batch | {"position_ids": filled(rows, "position_ids", 0), "use_cache": False}
        sizes = torch.tensor([len(row["input_ids"]) for row in rows])
        mask = torch.arange(batch["input_ids"].shape[1])[None] < sizes[:, None]
        return batch | {"attention_mask": mask.long()}

    return collate
