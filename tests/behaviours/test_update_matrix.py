"""Every family inherits the same tests of the update."""

import pytest
import torch

import dsee
from behaviours import families
from behaviours.update_behaviours import UpdateBehaviours


class TestBert(UpdateBehaviours):
    family = families.ALL["bert"]


class TestRoberta(UpdateBehaviours):
    family = families.ALL["roberta"]


class TestDistilBert(UpdateBehaviours):
    family = families.ALL["distilbert"]


class TestElectra(UpdateBehaviours):
    family = families.ALL["electra"]


class TestDeberta(UpdateBehaviours):
    family = families.ALL["deberta-v2"]

    def test_two_adapters_switch_and_mix_in_one_batch(self):
        """Its query and key projections also take the relative positions, once for the whole batch: no rows to mix."""
        model = self.family.adapted()
        model.add_adapter("second", self.family.update(support="random"))
        names = ["default", "second", "__base__", "second"]
        with torch.no_grad(), pytest.raises(dsee.InputError, match="target_modules"):
            model(**self.family.batch(), adapter_names=names)

    def test_updates_on_its_values_mix_in_one_batch(self):
        self.mixed(["value_proj"])


class TestGpt2(UpdateBehaviours):
    family = families.ALL["gpt2"]


class TestLlama(UpdateBehaviours):
    family = families.ALL["llama"]


class TestQwen2(UpdateBehaviours):
    family = families.ALL["qwen2"]


class TestQwen3(UpdateBehaviours):
    family = families.ALL["qwen3"]


class TestMistral(UpdateBehaviours):
    family = families.ALL["mistral"]


class TestT5(UpdateBehaviours):
    family = families.ALL["t5"]
