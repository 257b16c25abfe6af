"""What a recipe says about its data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from dsee.errors import listed, nearest
from dsee.tasks.glue_tasks import GLUE
from dsee.tasks.kinds import KindName

#: What becomes of texts that are longer than they may be.
Policy = Literal["truncate", "error", "skip"]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]

#: What one says of one's own data, and GLUE decides by itself.
OWN = (
    *("train", "validation", "test", "name", "config", "streaming", "text", "text_pair"),
    *("label", "separator", "labels", "label_map", "where"),
)


class SplitSpec(BaseModel):
    """Shares cut off the training file for parts that have no file of their own, stratified by the label if it is one.

    Attributes:
        validation: share for choosing the best epoch.
        test: share for the reported figures; never looked at before.
    """

    model_config = ConfigDict(extra="forbid")

    validation: Share = 0.1
    test: Share = 0.2

    @model_validator(mode="after")
    def _leave_something(self) -> SplitSpec:
        if self.validation + self.test >= 1.0:
            raise ValueError("validation and test together leave nothing to train on")
        return self


class DataSpec(BaseModel):
    """Files and columns of a task on texts or pairs: one's own files, a ``datasets`` name, or a task of GLUE.

    Attributes:
        kind: what a label is; by default several columns or a separator mean "multi-label", else "classification".
        train: CSV, TSV, JSON Lines or Parquet file; ``package:NAME/PATH`` finds one inside an installed package. With
            ``name``, the name of a split; so are the next two.
        validation: file for choosing the best epoch; cut off ``train`` if missing.
        test: file for the reported figures; cut off ``train`` if missing.
        dir: folder that file names start from; with ``glue``, the folder of its files.
        glue: a task of GLUE, which decides all but the sizes.
        name: a data set of the hub, or a folder that ``datasets`` saved.
        config: which of the hub's configurations of ``name``.
        text: column with the sentence.
        text_pair: column with the second sentence, for tasks on pairs.
        label: column with the label; several columns of 0 and 1 are several labels.
        separator: what stands between several labels in one column.
        labels: all labels in the order of their indices; by default those of the training file, sorted.
        label_map: label as it stands in the file -> name.
        where: column -> value: only rows that match are used.
        quotes: whether quotation marks enclose cells of CSV and TSV; false takes them as they are.
        deduplicate: drop repeated texts before splitting.
        split: sizes of the parts cut off ``train``.
        max_bad_rows: how many rows that cannot be used may be left out; one more is an error.
        too_long: what becomes of texts longer than ``max_length``.
        streaming: read the training file anew in every epoch instead of keeping it in memory.
        shuffle_buffer: rows that streaming draws the next one from.
    """

    model_config = ConfigDict(extra="forbid")

    kind: KindName | None = None
    # before "train", whose check looks at them
    glue: str | None = None
    name: str | None = None
    config: str | None = None
    train: Annotated[str | None, Field(validate_default=True)] = None
    validation: str | None = None
    test: str | None = None
    dir: str | None = None
    text: str = "text"
    text_pair: str | None = None
    label: str | list[str] = "label"
    separator: str | None = None
    labels: list[str | int] | None = None
    label_map: dict[str | int, str | int] = {}
    where: dict[str, str | int] = {}
    quotes: bool = True
    deduplicate: bool = False
    split: SplitSpec = SplitSpec()
    max_bad_rows: Annotated[int, Field(ge=0)] = 0
    too_long: Policy = "truncate"
    streaming: bool = False
    shuffle_buffer: Annotated[int, Field(ge=1)] = 10_000

    @field_validator("glue")
    @classmethod
    def _of_glue(cls, value: str | None) -> str | None:
        if value is not None and value not in GLUE:
            raise ValueError(f"no task of GLUE.{nearest(value, GLUE)} Its tasks: {listed(GLUE)}")
        return value

    @field_validator("train")
    @classmethod
    def _somewhere(cls, value: str | None, info: ValidationInfo) -> str | None:
        # a glue that is refused is not among the data
        if value is None and info.data.get("glue", "") is None and info.data.get("name", "") is None:
            raise ValueError("say where the data is: train (a file), name (a data set of the hub) or glue (a task)")
        return value

    @model_validator(mode="after")
    def _glue_decides(self) -> DataSpec:
        given = {key for key in OWN if getattr(self, key) != type(self).model_fields[key].default}
        if self.glue is not None and given:
            twice = listed(key for key in OWN if key in given)
            raise ValueError(f"glue decides {twice} by itself; leave that out, or describe your own data")
        return self

    @model_validator(mode="after")
    def _settle_kind(self) -> DataSpec:
        several = isinstance(self.label, list) or self.separator is not None
        if self.glue is not None:
            if self.kind not in (None, GLUE[self.glue].kind):
                raise ValueError(f"kind: {self.glue} of GLUE is a {GLUE[self.glue].kind}")
            self.kind = GLUE[self.glue].kind
        elif self.kind is None:
            self.kind = "multi-label" if several else "classification"
        elif several and self.kind != "multi-label":
            raise ValueError(f"several labels or a separator are multi-label, not {self.kind}")
        if isinstance(self.label, list) and (self.labels or self.separator or len(self.label) < 2):
            raise ValueError("label: a list names two columns or more, which are the labels; no labels or separator")
        if self.kind == "regression" and (self.labels or self.label_map):
            raise ValueError("labels and label_map are for classes; a regression has numbers")
        return self

    @model_validator(mode="after")
    def _streamable(self) -> DataSpec:
        if not self.streaming:
            return self
        if self.validation is None or self.test is None:
            raise ValueError("streaming: nothing can be cut off a stream; give validation and test files of their own")
        if self.deduplicate:
            raise ValueError("streaming: deduplicate would have to remember every text; do that beforehand")
        return self
