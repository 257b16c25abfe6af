"""What a model reads beside its tokens."""

from __future__ import annotations

from typing import Any

#: A tokenizer's name for which of two sentences a token belongs to.
TYPES = "token_type_ids"


def takes_token_types(config: Any) -> bool:
    """Return whether a model tells two sentences apart by the types of their tokens.

    Others must not be given any, whatever a tokenizer makes: GPT-2 takes them for words, whose embeddings it adds.

    Args:
        config: the model's configuration.
    """
    return int(getattr(config, "type_vocab_size", 0) or 0) > 1


def without_token_types(tokenizer: Any, config: Any) -> Any:
    """Return a tokenizer that makes token types only for a model that takes them.

    Args:
        tokenizer: changed in place.
        config: the model's configuration.
    """
    if not takes_token_types(config):
        names = [name for name in tokenizer.model_input_names if name != TYPES]
        # what is written where it is saved is what it was made with
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    return tokenizer
