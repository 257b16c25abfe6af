"""Every family inherits the same tests of the update."""

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
