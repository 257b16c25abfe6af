"""What tuning, pruning and reporting do differently where a model writes texts instead of choosing labels."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from dsee.errors import InputError
from dsee.measure.sample import longest_input
from dsee.modes import evaluating
from dsee.processes import first
from dsee.tasks.bad_rows import below
from dsee.tasks.generation import (
    EncodedText,
    GenerationData,
    StreamedText,
    TextStream,
    collate_text,
    load_generation_data,
    score_texts,
)
from dsee.tasks.generation.ask import FACT, asking
from dsee.tasks.generation.loss import text_loss
from dsee.tasks.generation.score import chosen_metrics
from dsee.tasks.generation.write import write_texts
from dsee.tasks.metrics import Figures
from dsee.training.fit import Objective, torch_logits
from dsee.training.progress import Bar
from dsee.training.recipe import Recipe
from dsee.training.stage import write_whole

PARTS = ("train", "validation", "test")


class Writing:
    """A run's recipe as a task of writing.

    Attributes:
        recipe: the recipe.
        base: folder its relative paths start from.
        tokenizer: the model's tokenizer.
    """

    def __init__(self, recipe: Recipe, base: Path, tokenizer: Any) -> None:
        """Keep what follows from a recipe; nothing is read yet.

        Args:
            recipe: a recipe whose ``task`` is one of :data:`dsee.tasks.generation.KINDS`.
            base: folder its relative paths start from.
            tokenizer: the model's tokenizer.
        """
        self.recipe, self.base, self.tokenizer = recipe, base, tokenizer

    @cached_property
    def data(self) -> GenerationData:
        """The three parts as texts."""
        recipe = self.recipe
        return load_generation_data(recipe.data, recipe.generation, recipe.task, self.base, recipe.seed)

    @cached_property
    def parts(self) -> dict[str, EncodedText | StreamedText]:
        """The parts as token ids; only what is learned from is packed.

        Raises:
            InputError: more bad rows than are tolerated, those that are too long among them.
        """
        found = {name: self._encoded(name) for name in PARTS}
        self.data.bad.check()
        for name, part in found.items():
            if isinstance(part, EncodedText) and not part.features:
                raise InputError(f"data.{name}: no row has {self.recipe.max_length} tokens or fewer (max_length).")
        return found

    def _encoded(self, name: str) -> EncodedText | StreamedText:
        recipe, part = self.recipe, getattr(self.data, name)
        if isinstance(part, TextStream):
            return StreamedText(part, self.tokenizer, recipe.max_length, recipe.seed)
        return EncodedText(
            part,
            self.tokenizer,
            recipe.max_length,
            recipe.generation,
            recipe.task,
            packs=recipe.generation.packed and name == "train",
            too_long=recipe.data.too_long,
            bad=self.data.bad,
        )

    def kept(self, name: str) -> EncodedText:
        """Return a part that is no stream.

        Args:
            name: "validation" or "test".
        """
        part = self.parts[name]
        assert isinstance(part, EncodedText)  # noqa: S101 - only what is learned from may be a stream
        return part

    @cached_property
    def collate(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Makes padded batches."""
        return collate_text(self.tokenizer)

    @property
    def prompts(self) -> int:
        """How many texts each variant writes."""
        found = len(self.kept("test").prompts)
        return min(found, self.recipe.generation.decoding.limit or found)

    @property
    def notes(self) -> list[str]:
        """What a report has to say of the data; of a stream, the stages that read it tell."""
        found, limit = [], self.recipe.max_length
        for name, part in self.parts.items():
            if isinstance(part, StreamedText):
                continue
            all_of = len(part.examples) + len(part.skipped)
            if part.shortened:
                fit = f"so that they fit into {limit} tokens: {name}"
                found.append(f"cut the ends of {part.shortened} of {all_of} targets, {fit}")
            if part.skipped:
                found.append(f"left out {len(part.skipped)} of {all_of} examples over {limit} tokens: {name}")
                found += below(part.skipped, len(part.skipped))
        return [*found, *self.data.notes, *self.data.bad.notes]

    def objective(self) -> Objective:
        """Return what tuning works towards: the lowest loss on the validation part."""
        return Objective(
            evaluate=self.validate, collate=self.collate, label_smoothing=self.recipe.generation.label_smoothing
        )

    def validate(self, model: Any) -> Figures:
        """Return loss and perplexity of a model on the validation part, in eval mode.

        Args:
            model: the model; its mode is restored.
        """
        with evaluating(model):
            return self.loss(torch_logits(model), "validation")

    def loss(self, logits: Callable[[Any], Any], part: str, progress: Callable[[int], None] | None = None) -> Figures:
        """Return loss and perplexity on one part.

        Args:
            logits: from a batch to (batch, tokens, vocabulary).
            part: "validation" or "test".
            progress: called with the number of sequences done.
        """
        return text_loss(logits, self.kept(part), self.collate, len(self.tokenizer), progress=progress)

    def check(self, empty: Any) -> None:
        """Find before any tuning what would fail after it.

        Args:
            empty: the model without its weights.

        Raises:
            InputError: sequences, or prompts and texts, longer than the model's positions; a metric without its data;
                packed examples for a model that cannot keep them apart.
            MissingExtraError: a metric without its package.
        """
        recipe = self.recipe
        if recipe.cache_prefix:
            raise InputError("cache_prefix: only for tasks on sentences. Set cache_prefix: false.")
        if recipe.max_length > longest_input(empty):
            raise InputError(
                f"max_length={recipe.max_length} is more than the {longest_input(empty)} positions of this model."
            )
        if recipe.generation.packed and "position_ids" not in inspect.signature(empty.forward).parameters:
            # without them its examples would see each other, and nobody would be told
            raise InputError(f"generation.packed: a {type(empty).__name__} takes no positions. Set packed: false.")
        if recipe.task == "language-modelling":
            return
        chosen_metrics(recipe.generation.metrics)
        longest, new = max(map(len, self.kept("test").prompts)), recipe.generation.decoding.max_new_tokens
        if longest + new > longest_input(empty):
            raise InputError(
                f"generation.decoding.max_new_tokens={new} after the longest prompt of {longest} tokens is more than "
                f"the {longest_input(empty)} positions of this model."
            )

    def facts(self) -> dict[str, Any]:
        """Return what a saved model has to say of how it is asked, as plain data."""
        recipe = self.recipe
        return {FACT: asking(self.tokenizer, recipe.generation, recipe.task).model_dump(mode="json")}

    def write(self, bar: Bar, folder: Path, texts: Path, like: Path | None = None) -> dict[str, Any]:
        """Let a saved model write for the test part's prompts, and score what it writes.

        Args:
            bar: advanced by one for each text.
            folder: the model's artifact, or its export.
            texts: JSON Lines file for prompts, texts and references.
            like: such a file of the model that an export was made from.

        Returns:
            "scores", what could not be scored and why, and of how many texts; with ``like`` "same", the share of texts
            that are what the model wrote.
        """
        test, spec = self.kept("test"), self.recipe.generation
        names, missing = chosen_metrics(spec.metrics)
        examples = test.examples[: self.prompts]
        found = self._written(folder, test.prompts[: self.prompts], bar.advance)
        scores = first(lambda: self._scored(bar, found, texts, names, examples))
        said = {"scores": scores, "missing": missing, "texts": len(found), "references": _count(examples)}
        return said | ({"same": _same(found, like)} if like else {})

    def _scored(
        self, bar: Bar, found: list[str], texts: Path, names: list[str], examples: list[Any]
    ) -> dict[str, float]:
        """Keep what was written, and score it."""
        lines = [
            json.dumps({"prompt": e.prompt, "text": text, "references": list(e.references)}, ensure_ascii=False)
            for e, text in zip(examples, found, strict=True)
        ]
        texts.parent.mkdir(parents=True, exist_ok=True)
        write_whole(texts, "\n".join(lines) + "\n")
        bar.note("scoring")
        scores = score_texts(found, [e.references for e in examples], names) if names else {}
        if "bleu" in scores:
            bar.note(f"BLEU {scores['bleu']:.1f}")
        return scores

    def _written(self, folder: Path, prompts: list[list[int]], progress: Callable[[int], None]) -> list[str]:
        import dsee
        from dsee.runtime.opened import is_onnx

        decoding = self.recipe.generation.decoding
        if is_onnx(folder):
            # a session has threads of its own, and takes no share of another's work
            return first(lambda: dsee.runtime.OnnxModel(folder).write_after(prompts, decoding, progress))
        return write_texts(dsee.load(folder), self.tokenizer, prompts, decoding, progress=progress)


def _same(texts: list[str], like: Path) -> float:
    """Share of texts that are those of a file."""
    others = [json.loads(line)["text"] for line in like.read_text(encoding="utf-8").splitlines()]
    return sum(bool(a == b) for a, b in zip(texts, others, strict=True)) / max(1, len(texts))


def _count(examples: list[Any]) -> int:
    return sum(len(e.references) for e in examples)
