"""How an exported model that learned to write wants to be asked, and asking it so; no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from dsee.errors import ArtifactError
from dsee.runtime.beams import beam_search
from dsee.runtime.generation import Writer, greedy, until_end

#: Key of the facts in the manifest of an artifact and of its export.
FACT = "writing"


class Decoding(Protocol):
    """How texts are written: :class:`dsee.tasks.generation.DecodingSpec`, or what an export keeps of it."""

    beams: int
    length_penalty: float
    no_repeat_ngram: int
    max_new_tokens: int
    batch_size: int


@dataclass
class StoredDecoding:
    """What an export keeps of how texts are written; the keys of :class:`dsee.tasks.generation.DecodingSpec`."""

    beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    max_new_tokens: int = 64
    batch_size: int = 16


@dataclass
class Asked:
    """What stood around prompts in training, and how texts were written.

    Attributes:
        before: what stands before a prompt, special tokens written out.
        after: what stands after it.
        decoding: how texts are written.
        ends: tokens that end a text; None for the model's own.
    """

    before: str
    after: str
    decoding: StoredDecoding
    ends: set[int] | None


def stored_asked(facts: dict[str, Any], folder: Any) -> Asked | None:
    """Return what an export says of how to ask its model; None if it says nothing.

    Args:
        facts: of its manifest.
        folder: for the message.

    Raises:
        ArtifactError: it says something else.
    """
    if FACT not in facts:
        return None
    said = facts[FACT]
    try:
        kept = said["decoding"]
        given = {name: type(default)(kept.get(name, default)) for name, default in vars(StoredDecoding()).items()}
        decoding = StoredDecoding(**given)
        if min(decoding.beams, decoding.max_new_tokens, decoding.batch_size, decoding.no_repeat_ngram + 1) < 1:
            raise ValueError("a number that is too small")
        ends = {int(end) for end in said["end"]} if "end" in said else None
        return Asked(str(said["before"]), str(said["after"]), decoding, ends)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ArtifactError(
            f"{folder}: its manifest does not say how to ask the model (facts.{FACT}: {error!r})."
        ) from error


def write(writer: Writer, prompts: list[list[int]], decoding: Decoding, ends: set[int]) -> list[list[int]]:
    """Go on from prompts in one batch.

    Args:
        writer: the model.
        prompts: token ids of each prompt, at least one each.
        decoding: how; its batch size is the caller's matter.
        ends: tokens that end a text.

    Returns:
        The new tokens of each prompt, up to and with the one that ends the text.
    """
    longest, size = decoding.max_new_tokens, decoding.no_repeat_ngram
    if decoding.beams == 1:
        return greedy(writer, prompts, longest, ends, no_repeat=size)
    penalty = decoding.length_penalty
    return beam_search(writer, prompts, longest, ends, beams=decoding.beams, length_penalty=penalty, no_repeat=size)


def write_texts(
    new_writer: Callable[[], Writer],
    decode: Callable[[list[int]], str],
    prompts: list[list[int]],
    decoding: Decoding,
    ends: set[int],
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Write a text after each prompt, those of like length in one batch.

    Args:
        new_writer: gives the model, with nothing read yet.
        decode: from tokens to text, special ones left out.
        prompts: token ids of each prompt, at least one each.
        decoding: how.
        ends: tokens that end a text.
        progress: called with the number of texts written since the last call.

    Returns:
        The texts, in the prompts' order, outer blanks left out.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    texts = [""] * len(prompts)
    for at in range(0, len(order), decoding.batch_size):
        rows = order[at : at + decoding.batch_size]
        found = write(new_writer(), [prompts[i] for i in rows], decoding, ends)
        for i, tokens in zip(rows, found, strict=True):
            texts[i] = decode(until_end(tokens, ends)).strip()
        if progress:
            progress(len(rows))
    return texts
