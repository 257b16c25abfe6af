"""Every family inherits the same tests of pruning."""

import pytest

import dsee
from behaviours import families
from behaviours.prune_behaviours import PruneBehaviours


class TestBert(PruneBehaviours):
    family = families.ALL["bert"]


class TestRoberta(PruneBehaviours):
    family = families.ALL["roberta"]


class TestDistilBert(PruneBehaviours):
    family = families.ALL["distilbert"]


class TestElectra(PruneBehaviours):
    family = families.ALL["electra"]


class TestDeberta(PruneBehaviours):
    family = families.ALL["deberta-v2"]


class TestGpt2(PruneBehaviours):
    family = families.ALL["gpt2"]


class TestLlama(PruneBehaviours):
    family = families.ALL["llama"]


class TestQwen2(PruneBehaviours):
    family = families.ALL["qwen2"]


class TestQwen3(PruneBehaviours):
    family = families.ALL["qwen3"]


class TestMistral(PruneBehaviours):
    family = families.ALL["mistral"]


class TestT5(PruneBehaviours):
    family = families.ALL["t5"]
    heads = False

    def test_its_heads_are_refused_by_name(self):
        with pytest.raises(dsee.ArchitectureError, match=r"t5.*heads"):
            dsee.prune(self.family.adapted(), dsee.Heads(0.5, score="weight"))
