"""What every stage needs: the recipe, the data and the tokenizer, loaded once and only when a stage asks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dsee.errors import InputError
from dsee.tasks.encode import Encoded
from dsee.tasks.generation import GenerationData
from dsee.tasks.places import PACKAGE, existing_file, locate
from dsee.tasks.text import TextData, load_text_data
from dsee.training.gguf import dense_arguments, gguf_arguments, plain
from dsee.training.recipe import Recipe
from dsee.training.stage import content_of
from dsee.training.writing import Writing


@dataclass
class Setting:
    """One run's recipe and what follows from it.

    Attributes:
        recipe: the recipe.
        base: folder its relative paths start from.
        output: folder for everything that comes out.
    """

    recipe: Recipe
    base: Path
    output: Path

    @cached_property
    def model_source(self) -> str:
        """Folder or hub name of the pre-trained model."""
        reference = self.recipe.model
        path = locate(reference, self.base)
        if path.is_dir():
            if self.recipe.gguf_file is None and not (path / "config.json").is_file():
                raise InputError(f"model: {path} is not a model folder, it has no config.json.")
            return str(path)
        if reference.startswith((PACKAGE, "/", ".", "~")) or path.exists():
            raise InputError(f"model: {path} is not a folder with a model in it.")
        return reference

    @property
    def _gguf(self) -> dict[str, Any]:
        return gguf_arguments(self.recipe.gguf_file, self.model_source)

    @cached_property
    def writing(self) -> Writing | None:
        """The task, if it is one of writing."""
        return Writing(self.recipe, self.base, self.tokenizer) if self.recipe.writes else None

    @cached_property
    def data(self) -> TextData | GenerationData:
        """The three parts."""
        if self.writing:
            return self.writing.data
        return load_text_data(self.recipe.data, self.base, self.recipe.seed)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        from transformers import AutoTokenizer

        return _from_hub(AutoTokenizer, self.model_source, **self._gguf)

    @cached_property
    def parts(self) -> dict[str, Any]:
        """The parts as token ids: "train", "validation", "test"."""
        if self.writing:
            return dict(self.writing.parts)
        names = ("train", "validation", "test")
        return {n: Encoded(getattr(self.data, n), self.tokenizer, self.recipe.max_length) for n in names}

    @cached_property
    def collate(self) -> Any:
        """Makes padded batches."""
        if self.writing:
            return self.writing.collate
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(self.tokenizer)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Content of everything outside the recipe that the results depend on."""
        spec = self.recipe.data
        files = [existing_file(r, self.base) for r in (spec.train, spec.validation, spec.test) if r is not None]
        source = Path(self.model_source)
        source = source / self.recipe.gguf_file if self.recipe.gguf_file else source
        return {"model": content_of(source), "data": [content_of(path) for path in files]}

    def empty_model(self) -> Any:
        """Return the model's shapes without its weights, on the meta device.

        Raises:
            InputError: the model's configuration cannot be loaded.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

        config = _from_hub(AutoConfig, self.model_source, **self._gguf)
        with torch.device("meta"):
            return (AutoModelForCausalLM if self.writing else AutoModelForSequenceClassification).from_config(config)

    def new_model(self) -> Any:
        """Return the pre-trained model, with an untrained task head if it is to choose labels.

        Raises:
            InputError: the model cannot be loaded.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        more = self._gguf | (dense_arguments() if self._gguf else {})
        if isinstance(self.data, GenerationData):
            # a small update's steps are lost in the rounding of half precision
            model = _from_hub(AutoModelForCausalLM, self.model_source, dtype=torch.float32, **more)
            return plain(model) if self._gguf else model
        labels = self.data.labels
        named = {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
        }
        return _from_hub(AutoModelForSequenceClassification, self.model_source, num_labels=len(labels), **named)


def _from_hub(auto_class: Any, source: str, **kwargs: Any) -> Any:
    from transformers.utils import logging

    # the report of newly made head weights is what one expects when a head is put on
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return auto_class.from_pretrained(source, **kwargs)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"model: {source} could not be loaded by {auto_class.__name__}: {reason}") from error
    finally:
        logging.set_verbosity(level)
