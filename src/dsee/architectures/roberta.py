"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT's layout."""

from dataclasses import replace

from dsee.architectures._registry import register
from dsee.architectures.bert import BERT

ROBERTA = register(replace(BERT, name="roberta", model_types=("xlm-roberta", "camembert")))
