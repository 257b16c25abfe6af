"""What a recipe says about a task of writing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dsee.tasks.generation.official import Format
from dsee.tasks.spec import DataSpec

#: Values of a recipe's ``task`` for models that write.
KINDS = ("data-to-text", "instruction", "language-modelling")

Metric = Literal["bleu", "nist", "meteor", "rouge_l", "cider", "ter"]
Positive = Annotated[int, Field(ge=1)]


class DecodingSpec(BaseModel):
    """How texts are written; the defaults are those of LoRA's experiments with GPT-2 (Hu et al. 2021, section D.3).

    Attributes:
        beams: 1 is greedy.
        length_penalty: a text's summed log-probability is divided by its length to this power.
        no_repeat_ngram: no text says the same so many tokens twice; the prompt may be repeated. 0 allows all.
        max_new_tokens: longest text.
        batch_size: prompts at a time.
        limit: write for the first so many prompts of the test part only; None writes for all.
    """

    model_config = ConfigDict(extra="forbid")

    beams: Positive = 10
    length_penalty: float = 0.8
    no_repeat_ngram: Annotated[int, Field(ge=0)] = 4
    max_new_tokens: Positive = 64
    batch_size: Positive = 16
    limit: Positive | None = None


class GenerationSpec(BaseModel):
    """Columns and settings of a task of writing.

    Attributes:
        format: "table" for columns of one's own; "e2e", "dart" or "webnlg" for the files of these sets as their authors
            publish them.
        source: column with the data of data-to-text, already a text; or a list of columns, written as
            ``name : value | name : value``.
        target: column with the text to learn.
        references: column with lists of texts that are as good, for scoring; None scores against the target alone.
        prompt: column of an instruction.
        response: column of its answer.
        separator: text between prompt and answer; None puts the token that begins or ends texts there.
        chat: write instructions in the tokenizer's chat template; None does so where there is one.
        packed: put several examples into one sequence, so that nothing is padded. Plain text always is.
        label_smoothing: share of the target's probability that is spread over all tokens while learning.
        metrics: what texts are scored by; None takes those whose packages are installed.
        decoding: how texts are written.
    """

    model_config = ConfigDict(extra="forbid")

    format: Format = "table"
    source: str | list[str] = "source"
    target: str = "target"
    references: str | None = None
    prompt: str = "prompt"
    response: str = "response"
    separator: str | None = None
    chat: bool | None = None
    packed: bool = False
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    metrics: list[Metric] | None = None
    decoding: DecodingSpec = DecodingSpec()

    @model_validator(mode="after")
    def _columns_of_the_format(self) -> GenerationSpec:
        given = {"source", "target", "references"} & self.model_fields_set
        if self.format != "table" and any(getattr(self, k) != type(self).model_fields[k].default for k in given):
            raise ValueError(f"format: {self.format} has columns of its own; leave out {', '.join(sorted(given))}")
        return self


#: Keys of a recipe's data section that a task of writing knows; its columns are in a section of their own.
_DATA = {
    *("dir", "name", "config", "train", "validation", "test", "where", "quotes", "deduplicate", "split"),
    *("max_bad_rows", "streaming", "shuffle_buffer"),
}


def check_keys(kind: str, data: DataSpec, generation: GenerationSpec, metric: str | None) -> None:
    """Refuse what has no meaning where a model learns to write.

    Args:
        kind: one of :data:`KINDS`.
        data: the recipe's data section.
        generation: the recipe's section for writing.
        metric: the recipe's figure to choose the epoch by.

    Raises:
        ValueError: for pydantic, naming the key.
    """
    if metric is not None:
        raise ValueError(
            "metric: a model that writes is chosen by its loss; what texts are scored by: generation.metrics"
        )
    plain = kind == "language-modelling"
    # plain text is cut into blocks, so that nothing of it is too long
    known = _DATA | ({"text"} if plain else {"too_long"})
    # the kind settles itself to this one where nobody gave another
    settled = {"kind"} if data.kind == "classification" else set()
    if unused := sorted(data.model_fields_set - known - settled):
        raise ValueError(f"data.{unused[0]}: has no meaning in task {kind}; its columns are keys of generation")
    if data.name is not None and generation.format != "table":
        raise ValueError("data.name: is a table; generation.format is for files")
    if kind != "data-to-text" and generation.format != "table":
        raise ValueError(f"generation.format: {generation.format} is data-to-text, not {kind}")
