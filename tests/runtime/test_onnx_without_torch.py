"""Running an export loads neither torch nor transformers."""

import json

import pytest
from onnx_tools import exported, run_python

from dsee.runtime import OnnxModel

CODE = """
import dsee_command, json, sys
from dsee.runtime import OnnxModel
logits = OnnxModel(sys.argv[1]).logits(["good film", "bad"])
heavy = [name for name in ("torch", "transformers", "peft", "onnx", "pandas", "datasets") if name in sys.modules]
print(json.dumps({"logits": logits.tolist(), "heavy": heavy}))
"""


@pytest.fixture(scope="module")
def said():
    return json.loads(run_python(CODE, str(exported("bert").folder)))


def test_nothing_heavy_is_loaded(said):
    assert said["heavy"] == []


def test_the_logits_are_the_same_as_with_torch_around(said):
    assert said["logits"] == OnnxModel(exported("bert").folder).logits(["good film", "bad"]).tolist()
