"""Families whose word embeddings carry an update too inherit the same tests."""

import pytest

from behaviours.families import WITH_WORDS
from behaviours.update_behaviours import UpdateBehaviours


class TestBert(UpdateBehaviours):
    family = WITH_WORDS["bert"]


class TestRobertaWithAPaddingRow(UpdateBehaviours):
    family = WITH_WORDS["roberta"]


class TestDistilBert(UpdateBehaviours):
    family = WITH_WORDS["distilbert"]


class TestElectraWithNarrowEmbeddings(UpdateBehaviours):
    family = WITH_WORDS["electra"]


class TestGpt2Untied(UpdateBehaviours):
    family = WITH_WORDS["gpt2"]


# PEFT stores the embeddings beside an adapter on layers of this name
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
class TestLlamaUntied(UpdateBehaviours):
    family = WITH_WORDS["llama"]
