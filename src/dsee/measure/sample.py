"""Inputs to measure with."""

from __future__ import annotations

from typing import Any

import torch

from dsee.architectures._registry import plain_model
from dsee.errors import InputError


def longest_input(model: Any) -> int:
    """Return how many tokens a model's positions allow.

    Args:
        model: a transformers model, with or without PEFT around it.
    """
    config = plain_model(model).config
    longest = int(getattr(config, "max_position_embeddings", 512))
    # RoBERTa and its kin start counting positions after the padding id
    if any(family in str(config.model_type) for family in ("roberta", "camembert")):
        longest -= int(config.pad_token_id) + 1
    return longest


def check_sizes(batch: int, sequence: int) -> None:
    """Refuse to measure with no sentence or no token.

    Args:
        batch: sentences.
        sequence: tokens per sentence.

    Raises:
        InputError: one of them is less than 1.
    """
    if batch < 1 or sequence < 1:
        raise InputError(f"batch={batch} and sequence={sequence} have to be at least 1.")


def sample_inputs(model: Any, batch: int, sequence: int, *, padded: bool = False) -> dict[str, torch.Tensor]:
    """Return random token ids and a mask.

    Args:
        model: a transformers model, for its vocabulary and device.
        batch: sentences.
        sequence: tokens per sentence.
        padded: let every other sentence end halfway, as real batches do.

    Returns:
        ``input_ids`` and ``attention_mask``, (batch, sequence) int64 each, and for a model that writes from what an
        encoder has read as many ``decoder_input_ids``; the same for the same arguments.

    Raises:
        InputError: nothing to measure with, or the sequence is longer than the model's positions.
    """
    inner = plain_model(model)
    check_sizes(batch, sequence)
    if sequence > longest_input(model):
        raise InputError(f"sequence={sequence} is longer than the {longest_input(model)} tokens this model can take.")
    generator = torch.Generator().manual_seed(batch * 1_000_003 + sequence)
    ids = torch.randint(5, int(inner.config.vocab_size), (batch, sequence), generator=generator)
    mask = torch.ones_like(ids)
    if padded and batch > 1:
        mask[1::2, (sequence + 1) // 2 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if inner.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.flip(1)
        # T5's classifier looks for the token that ends a sentence
        ids[:, -1] = int(inner.config.eos_token_id)
    return {name: value.to(inner.device) for name, value in inputs.items()}
