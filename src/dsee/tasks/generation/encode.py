"""Tokens, packed or not, with a loss on what is to be written alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsee.errors import InputError
from dsee.tasks.generation.rows import Example
from dsee.tasks.generation.spec import GenerationSpec

#: Label of a token that is given, not learned; PyTorch's cross-entropy leaves it out.
IGNORED = -100


class EncodedText(torch.utils.data.Dataset[dict[str, Any]]):
    """One part of a task as token ids, ready for a Trainer.

    Attributes:
        features: for each sequence ``input_ids`` and ``labels``, and ``position_ids`` if it holds several examples.
        examples: what they were made from.
        prompts: token ids that a text is to be written after; none in plain text.
        shortened: examples whose target was cut at the longest length.
    """

    def __init__(
        self,
        examples: list[Example],
        tokenizer: Any,
        max_length: int,
        spec: GenerationSpec,
        kind: str,
        *,
        packed: bool | None = None,
    ) -> None:
        """Tokenize.

        Args:
            examples: the part.
            tokenizer: the model's tokenizer.
            max_length: longest sequence in tokens.
            spec: the recipe's section.
            kind: one of :data:`dsee.tasks.generation.KINDS`.
            packed: overrides the recipe, which packs what is learned from only.

        Raises:
            InputError: a prompt leaves no room for a text, or the tokenizer has no token that ends texts.
        """
        self.examples = examples
        self.shortened = 0
        self.prompts: list[list[int]] = []
        if kind == "language-modelling":
            self.features = _stream(examples, tokenizer, max_length)
            return
        pairs = encoder(tokenizer, spec, kind)(examples)
        self.prompts = [prompt for prompt, _ in pairs]
        rows = [self._row(prompt, target, max_length, e) for (prompt, target), e in zip(pairs, examples, strict=True)]
        self.features = _packed(rows, max_length) if (spec.packed if packed is None else packed) else rows

    def _row(self, prompt: list[int], target: list[int], max_length: int, example: Example) -> dict[str, Any]:
        if len(prompt) >= max_length:
            raise InputError(
                f"{example.place}: the prompt has {len(prompt)} tokens and leaves no room for a text "
                f"(max_length={max_length}). Raise max_length, or shorten the prompt."
            )
        self.shortened += len(prompt) + len(target) > max_length
        ids = (prompt + target)[:max_length]
        return {"input_ids": ids, "labels": [IGNORED] * len(prompt) + ids[len(prompt) :]}

    def __len__(self) -> int:
        return len(self.features)

    def head(self, limit: int) -> EncodedText:
        """Return the first sequences.

        Args:
            limit: how many.
        """
        found = object.__new__(EncodedText)
        found.features, found.examples, found.prompts, found.shortened = self.features[:limit], [], [], 0
        return found

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.features[index]


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


def end_token(tokenizer: Any) -> int:
    """Return the token that ends texts.

    Args:
        tokenizer: the model's tokenizer.

    Raises:
        InputError: it has none.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("model: its tokenizer has no token that ends a text (eos_token), so no text would end.")
    return int(tokenizer.eos_token_id)


def _stream(examples: list[Example], tokenizer: Any, length: int) -> list[dict[str, Any]]:
    """Plain text end to end in blocks of one length; every token but a block's first is learned."""
    ids = tokenizer([e.target for e in examples], add_special_tokens=False, verbose=False)["input_ids"]
    # lines that keep their end run on; paragraphs without one are texts of their own
    run_on = any(e.target.endswith("\n") for e in examples)
    tail = [] if run_on else [end_token(tokenizer)]
    stream = [token for row in ids for token in [*row, *(tail if row else [])]]
    blocks = [stream[at : at + length] for at in range(0, len(stream), length)]
    return [{"input_ids": block, "labels": list(block)} for block in blocks if len(block) > 1]


def _packed(rows: list[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    """Several examples in one sequence, first fit in order; positions start anew with each, so none sees another."""
    bins: list[list[dict[str, Any]]] = []
    room: list[int] = []
    for row in rows:
        size = len(row["input_ids"])
        # only the last few are tried: long lists would make this quadratic
        start = max(0, len(bins) - 32)
        at = next((i for i in range(start, len(bins)) if room[i] >= size), None)
        if at is None:
            bins.append([])
            room.append(length)
            at = len(bins) - 1
        bins[at].append(row)
        room[at] -= size
    return [
        {
            "input_ids": [token for row in rows_ for token in row["input_ids"]],
            # the first token of an example would be predicted from the end of another
            "labels": [label for row in rows_ for label in [IGNORED, *row["labels"][1:]]],
            "position_ids": [place for row in rows_ for place in range(len(row["input_ids"]))],
        }
        for rows_ in bins
    ]


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
