"""Token ids of plain text in blocks, and several short examples in one sequence."""

from __future__ import annotations

from typing import Any

from dsee.errors import InputError
from dsee.tasks.generation.rows import Example

#: Label of a token that is given, not learned; PyTorch's cross-entropy leaves it out.
IGNORED = -100


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


def text_ids(examples: list[Example], tokenizer: Any, *, run_on: bool) -> list[int]:
    """Return plain text end to end as token ids.

    Args:
        examples: lines or paragraphs.
        tokenizer: the model's tokenizer.
        run_on: whether a text goes on in the next line; else each one ends with the token that ends texts.
    """
    ids = tokenizer([e.target for e in examples], add_special_tokens=False, verbose=False)["input_ids"]
    tail = [] if run_on else [end_token(tokenizer)]
    return [token for row in ids for token in [*row, *(tail if row else [])]]


def blocks(ids: list[int], length: int) -> list[dict[str, Any]]:
    """Return token ids cut into sequences; every token but a block's first is learned.

    Args:
        ids: the tokens.
        length: of a block; the last one may be shorter, and of a single token there is nothing to learn.
    """
    found = [ids[at : at + length] for at in range(0, len(ids), length)]
    return [{"input_ids": block, "labels": list(block)} for block in found if len(block) > 1]


def packed(rows: list[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    """Return sequences of several examples, first fit in order; positions start anew with each, so none sees another.

    Args:
        rows: sequences of one example.
        length: longest sequence.
    """
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
