"""Data and metrics of the tasks: own files in, datasets with the model's columns out."""

from dsee.tasks.metrics import classification_metrics
from dsee.tasks.spec import DataSpec
from dsee.tasks.text import TextData, load_text_data

__all__ = ["DataSpec", "TextData", "classification_metrics", "load_text_data"]
