"""ELECTRA: BERT's layout."""

from dataclasses import replace

from dsee.architectures._registry import register
from dsee.architectures.bert import BERT

ELECTRA = register(replace(BERT, name="electra"))
