"""Writes golden files: one small folder of each format as this release makes it, and the logits it stands for.

Run once for each release, `PYTHONPATH=src:tests python tests/artifact/write_golden.py`. What a release has written
stays as it is: tests/artifact/test_artifact_golden.py replays the folders of all of them.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import dsee
from conftest import adapted
from dsee.pruning.plan import LayerPlan
from dsee.pruning.targets import mask_targets
from dsee.surgery.cut import cut
from update.models import scrambled

GOLDEN = Path(__file__).parent / "golden"
IDS = torch.tensor([[1, 5, 9, 2, 7, 3], [4, 8, 8, 6, 11, 10]])
FFN = ["intermediate.dense", "output.dense"]
WEIGHTS = dsee.Weights(0.7, score="weight")
BLOCKS = dsee.Blocks(0.7, score="weight")
PAIRS = dsee.NofM(2, 4, score="weight")


def bert(*rules):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(**sizes, vocab_size=12, max_position_embeddings=8, num_labels=3)
    return lively(BertForSequenceClassification(config), *rules)


def llama(*rules):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
    config = LlamaConfig(**sizes, vocab_size=12, max_position_embeddings=8, num_key_value_heads=2, head_dim=4)
    return lively(LlamaForCausalLM(config), *rules)


def lively(model, *rules):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower():
                parameter.normal_(std=0.3)
    if rules:
        dsee.prune(model, *rules)
    return model.eval()


def tuned(base, **config):
    return scrambled(adapted(base, r=2, n_sparse=5, support="random", **config))


def unevenly_cut():
    model = bert()
    cut(model, [LayerPlan((1,), tuple(range(40)))])
    return model


def gated():
    model = bert()
    model = tuned(model)
    dsee.add_gates(model)
    with torch.no_grad():
        for gate in dsee.pruning.gates.gate_parameters(model):
            gate.copy_(torch.linspace(0.5, 1.5, gate.numel()))
    return model


def two_updates():
    model = tuned(bert(WEIGHTS), masked=True)
    model.add_adapter("second", dsee.DseeConfig(task_type="SEQ_CLS", r=1, n_sparse=0))
    return scrambled(model, "second", 4).eval()


#: Name of the folder -> what is in it, and how it is saved.
FORMATS = {
    "stock": (bert, {}),
    "stock-weights": (lambda: bert(WEIGHTS), {}),
    "stock-llama-cut-alike": (lambda: llama(dsee.Heads(1, score="weight"), dsee.Neurons(8, score="weight")), {}),
    "sharded": (lambda: bert(PAIRS), {"max_shard_size": "6KB"}),
    "cut": (unevenly_cut, {}),
    "adapted": (two_updates, {}),
    "gated": (gated, {}),
    "split": (lambda: dsee.merge(tuned(bert(WEIGHTS), target_modules=FFN), policy="split"), {}),
    "compact-weights": (lambda: bert(WEIGHTS), {"compact": True}),
    "compact-blocks": (lambda: bert(BLOCKS), {"compact": True}),
    "compact-pairs": (lambda: bert(PAIRS), {"compact": True}),
    "compact-cut-split": (
        lambda: dsee.merge(tuned(bert(dsee.Heads(1, score="weight"), BLOCKS), target_modules=FFN), policy="split"),
        {"compact": True, "max_shard_size": "6KB"},
    ),
    "compact-llama": (lambda: llama(dsee.Neurons(8, score="weight"), WEIGHTS), {"compact": True}),
    "update": (lambda: tuned(bert(WEIGHTS), masked=True), {"base": False}),
}


def logits_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def zeros_of(model):
    return {target.name: int((~target.mask).sum()) for target in mask_targets(model) if target.mask is not None}


def main() -> None:
    """Write the folders of this release, unless they are there."""
    place = GOLDEN / dsee.__version__
    if place.exists():
        sys.exit(f"{place} is there already; golden files stay as they were written.")
    # merging says what it dropped of the update at the zeros; other tests look at that
    warnings.filterwarnings("ignore", message="merge: every zero kept")
    expected = {}
    for name, (make, how) in FORMATS.items():
        model = make()
        expected[name] = {
            "logits": logits_of(model).tolist(),
            "zeros": zeros_of(model),
            "steps": len(dsee.history(model)),
        }
        dsee.save(model, place / name, **how)
    (place / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
