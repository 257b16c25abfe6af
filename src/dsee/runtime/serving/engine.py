"""The model behind the server: what it can be asked, how long a text may be, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dsee.errors import InputError
from dsee.runtime.answers import Choice, answer


@dataclass(frozen=True)
class Question:
    """One text, or a pair, to classify."""

    text: str
    pair: str | None = None


@dataclass(frozen=True)
class Prompt:
    """One text to go on from, by at most ``max_new_tokens``."""

    text: str
    max_new_tokens: int


@dataclass(frozen=True)
class Continuation:
    """The answer to a prompt: the new text, its tokens, and whether the model ended it ("stop") or the limit."""

    text: str
    tokens: int
    finish: str


class Engine:
    """One opened model, asked in lists.

    Attributes:
        task: "classify" or "generate".
        labels: class names; empty for a model that generates.
    """

    def __init__(self, model: Any, *, threads: int = 1) -> None:
        """Look at what the model can do.

        Args:
            model: from :func:`dsee.runtime.opened.open_model`.
            threads: threads for the model.

        Raises:
            InputError: it neither classifies nor generates, or its folder has no tokenizer.
        """
        self.model, self.threads = model, threads
        self.task = "generate" if model.generates else "classify"
        self.labels: list[str] = [] if model.generates else model.labels
        # asks for the tokenizer now rather than at the first request
        self.limit = int(model.max_length)
        model.count_tokens(["a"])
        if not model.generates and np.ndim(model.logits(["a"])) != 2:
            raise InputError(f"{model.folder} neither classifies texts nor generates: there is nothing to serve.")

    def prepare(self) -> None:
        """Set torch's threads, which belong to the calling thread; ONNX Runtime has its own."""
        if hasattr(self.model, "model"):
            import torch

            torch.set_num_threads(self.threads)

    def lengths(self, items: list[Question] | list[Prompt]) -> list[int]:
        """Return the tokens each item takes, those it may add included.

        Args:
            items: questions or prompts.
        """
        pairs = [getattr(item, "pair", None) for item in items]
        counts: list[int] = self.model.count_tokens(
            [item.text for item in items], pairs if any(pair is not None for pair in pairs) else None
        )
        return [count + getattr(item, "max_new_tokens", 0) for count, item in zip(counts, items, strict=True)]

    def classify(self, items: list[Question]) -> list[Choice]:
        """Answer questions; singles and pairs may be mixed.

        Args:
            items: the questions.
        """
        answers: dict[int, Choice] = {}
        for paired in (False, True):
            places = [i for i, item in enumerate(items) if (item.pair is not None) is paired]
            if places:
                pairs = [str(items[i].pair) for i in places] if paired else None
                for place, row in zip(places, self.model.logits([items[i].text for i in places], pairs), strict=True):
                    answers[place] = answer(self.model.kind, self.labels, row)
        return [answers[i] for i in range(len(items))]

    def generate(self, items: list[Prompt]) -> list[Continuation]:
        """Go on from prompts, greedily, so that a shorter limit gives the beginning of what a longer one gives.

        Args:
            items: the prompts.
        """
        longest = max(item.max_new_tokens for item in items)
        found = self.model.generate([item.text for item in items], longest)
        answers = []
        for item, tokens in zip(items, found, strict=True):
            kept = tokens[: item.max_new_tokens]
            ended = len(kept) < item.max_new_tokens or (len(kept) > 0 and kept[-1] in self.model.end_tokens)
            text = self.model.decode(kept)
            answers.append(Continuation(text, len(kept), "stop" if ended else "length"))
        return answers

    def work(self, items: list[Any]) -> list[Any]:
        """Answer whatever the model is for.

        Args:
            items: questions or prompts, by :attr:`task`.
        """
        return self.generate(items) if self.task == "generate" else self.classify(items)
