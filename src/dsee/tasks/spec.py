"""What a recipe says about its data."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class SplitSpec(BaseModel):
    """Shares cut off the training file, stratified by label, for parts that have no file of their own.

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
    """Files and columns of a text-classification task.

    Attributes:
        train: CSV, TSV, JSON Lines or Parquet file; ``package:NAME/PATH`` finds a file inside an installed package.
        validation: file for choosing the best epoch; cut off ``train`` if missing.
        test: file for the reported figures; cut off ``train`` if missing.
        text: column with the sentence.
        text_pair: column with the second sentence, for tasks on pairs.
        label: column with the label.
        labels: all labels in the order of their indices; by default those of the training file, sorted.
        where: column -> value: only rows that match are used.
        deduplicate: drop repeated texts before splitting.
        split: sizes of the parts cut off ``train``.
    """

    model_config = ConfigDict(extra="forbid")

    train: str
    validation: str | None = None
    test: str | None = None
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    labels: list[str | int] | None = None
    where: dict[str, str | int] = {}
    deduplicate: bool = False
    split: SplitSpec = SplitSpec()
