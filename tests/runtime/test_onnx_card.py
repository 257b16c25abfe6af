"""The card's code runs as it is, on a machine without torch, transformers and dsee."""

import pytest
import torch
from onnx_tools import NAMES, exported, run_python, tokenizer, trace_from

import dsee

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "dsee", "peft", "safetensors"):
            raise ModuleNotFoundError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocked())
"""


def _code(folder):
    return (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]


def test_the_blocker_blocks():
    with pytest.raises(AssertionError, match="torch is not installed here"):
        run_python(BLOCKED + "import torch")


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_the_cards_code_runs_with_onnxruntime_and_tokenizers_alone(quantize):
    export = exported("bert", quantize)
    printed = run_python(BLOCKED + _code(export.folder), cwd=export.folder).split()
    encoded = tokenizer()(["a quietly moving film", "two hours I will never get back"], padding=True)
    with torch.no_grad():
        logits = export.model(**{k: torch.tensor(encoded[k]) for k in ("input_ids", "attention_mask")}).logits
    top = logits.topk(2).values
    # far enough apart that int8 does not change the winner: otherwise this test would say nothing
    assert (top[:, 0] - top[:, 1]).min() > 0.1 * logits.abs().max()
    assert printed == [NAMES[index] for index in logits.argmax(-1).tolist()]


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_the_card_names_precision_and_labels(quantize):
    text = (exported("bert", quantize).folder / "README.md").read_text()
    assert f"BertForSequenceClassification, ONNX {quantize or 'fp32'}" in text
    assert "Labels: sad, plain, glad" in text
    assert "up to 20 tokens" in text


def test_a_card_without_a_tokenizer_does_not_open_one(tmp_path, monkeypatch):
    export = exported("distilbert")
    trace_from(monkeypatch, export.folder)
    out = dsee.export_onnx(export.model, tmp_path / "out")
    assert not (out / "tokenizer.json").exists()
    run_python(BLOCKED + _code(out), cwd=out)
