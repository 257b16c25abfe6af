"""What every stage needs: the recipe, the data and the tokenizer, loaded once and only when a stage asks."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dsee.architectures.inputs import without_token_types
from dsee.errors import InputError
from dsee.tasks.bad_rows import RowError, below
from dsee.tasks.encode import Encoded
from dsee.tasks.glue_tasks import GLUE
from dsee.tasks.kinds import KINDS, shown_metrics
from dsee.tasks.open import data_files
from dsee.tasks.places import PACKAGE, locate
from dsee.tasks.rows import LINE, SOURCE
from dsee.tasks.stream import Streamed
from dsee.tasks.text import Stream, TextData, load_text_data
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
    def data(self) -> TextData:
        """The three parts."""
        return load_text_data(self.recipe.data, self.base, self.recipe.seed)

    @cached_property
    def _config(self) -> Any:
        """The pre-trained model's configuration; to be copied before it is changed."""
        from transformers import AutoConfig

        return _from_hub(AutoConfig, self.model_source, **self._gguf)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        from transformers import AutoTokenizer

        # what is saved beside a model then makes none either
        return without_token_types(_from_hub(AutoTokenizer, self.model_source, **self._gguf), self._config)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The figures that the report shows; the first one chooses the epoch."""
        if self.writing:
            return ("loss", "perplexity")
        usual = GLUE[self.recipe.data.glue].metrics if self.recipe.data.glue else None
        return shown_metrics(self.data.kind, self.recipe.metric, usual, len(self.data.labels))

    @cached_property
    def parts(self) -> dict[str, Any]:
        """The parts as token ids: "train" (a :class:`Streamed` if the recipe wants that), "validation", "test".

        Raises:
            InputError: texts that are too long, where the recipe has that as an error.
        """
        if self.writing:
            return dict(self.writing.parts)
        parts: dict[str, Any] = {}
        for name in ("train", "validation", "test"):
            part = getattr(self.data, name)
            parts[name] = self._streamed(part) if isinstance(part, Stream) else self._encoded(name, part)
        self.data.bad.check()
        return parts

    @cached_property
    def also(self) -> dict[str, Encoded]:
        """Further parts to report on, by the ending of their figures' names."""
        return {} if self.writing else {name: self._encoded(name, part) for name, part in self.data.also.items()}

    def answers_wanted(self, name: str) -> Encoded:
        """Return a part without labels as token ids; none of its rows is ever left out.

        Args:
            name: that of its file of predictions.
        """
        part = self.data.unlabelled[name]
        return Encoded(part, self.tokenizer, self.recipe.max_length, kind=self.data.kind)

    def _encoded(self, name: str, part: Any) -> Encoded:
        """Tokenize, and say what became of long texts."""
        policy, limit = self.recipe.data.too_long, self.recipe.max_length
        found = Encoded(part, self.tokenizer, limit, kind=self.data.kind, skip_long=policy != "truncate")
        verb = "truncated" if policy == "truncate" else "left out"
        if found.long and policy != "error":
            self.data.notes.append(f"{verb} {len(found.long)} of {len(part)} texts over {limit} tokens: {name}")
        if policy == "truncate":
            return found
        rows = {position: part[position] for position in found.long}
        places = {position: self.data.places[row[SOURCE]](row[LINE]) for position, row in rows.items()}
        if policy == "error":
            for position, place in places.items():
                reason = f"{found.long[position]} tokens, and max_length is {limit}."
                self.data.bad.add(place, RowError("too long", reason))
        else:
            lines = [f"{place}: {found.long[position]} tokens" for position, place in places.items()]
            self.data.notes.extend(below(lines, len(lines)))
        if not len(found):
            self.data.bad.check()
            raise InputError(f"data.too_long: no row of the {name} part has {limit} tokens or fewer.")
        return found

    def _streamed(self, part: Stream) -> Streamed:
        recipe = self.recipe
        return Streamed(part, self.tokenizer, recipe.max_length, recipe.seed)

    @property
    def sizes(self) -> dict[str, int]:
        """Sentences of each part that is used; nobody knows how many a stream has."""
        return {name: len(part) for name, part in self.parts.items() if not isinstance(part, Streamed)}

    @property
    def notes(self) -> list[str]:
        """What a report has to say of the data."""
        if self.writing:
            return self.writing.notes
        # tokenizing is what finds long texts
        _ = self.parts
        return [*self.data.notes, *self.data.bad.notes]

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
        files = data_files(self.recipe.data, self.base)
        source = Path(self.model_source)
        source = source / self.recipe.gguf_file if self.recipe.gguf_file else source
        return {"model": content_of(source), "data": [content_of(path) for path in files]}

    def empty_model(self) -> Any:
        """Return the model's shapes without its weights, on the meta device.

        Raises:
            InputError: the model's configuration cannot be loaded.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        config = deepcopy(self._config)
        with torch.device("meta"):
            return (AutoModelForCausalLM if self.writing else AutoModelForSequenceClassification).from_config(config)

    def new_model(self) -> Any:
        """Return the pre-trained model, with an untrained task head if it is to choose labels.

        Raises:
            InputError: the model cannot be loaded.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        if self.writing:
            more = self._gguf | (dense_arguments() if self._gguf else {})
            # a small update's steps are lost in the rounding of half precision
            model = _from_hub(AutoModelForCausalLM, self.model_source, dtype=torch.float32, **more)
            return plain(model) if self._gguf else model
        labels = self.data.labels
        config = deepcopy(self._config)
        # first of all: one label is no classification, which a folder may say it is
        config.problem_type = KINDS[self.data.kind].problem_type
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
        return _from_hub(AutoModelForSequenceClassification, self.model_source, config=config)


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
