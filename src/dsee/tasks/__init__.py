"""Data and metrics of the tasks: own files in, datasets with the model's columns out."""

from dsee.tasks.glue_tasks import GLUE
from dsee.tasks.kinds import measure
from dsee.tasks.metrics import classification_metrics, multi_label_metrics, regression_metrics
from dsee.tasks.spec import DataSpec
from dsee.tasks.text import TextData, load_text_data

__all__ = [
    "GLUE",
    "DataSpec",
    "TextData",
    "classification_metrics",
    "load_text_data",
    "measure",
    "multi_label_metrics",
    "regression_metrics",
]
