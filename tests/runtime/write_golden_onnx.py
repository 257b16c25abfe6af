"""Writes golden exports: small folders of models that write, and what torch wrote with the model they were made from.

Run once for each release, `PYTHONPATH=src:tests:tests/runtime python tests/runtime/write_golden_onnx.py`. What a
release has written stays as it is: tests/runtime/test_onnx_golden.py runs the folders of all of them.
``gpt2-reads-all-again`` in 0.1.0 is older than the cache; no exporter writes such a folder of a GPT-2 any more.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from onnx_tools import tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

import dsee
from dsee.pruning.plan import LayerPlan
from dsee.surgery.cut import cut
from dsee.tasks.generation import DecodingSpec, write_texts

GOLDEN = Path(__file__).parent / "golden"
PROMPTS = ["a quietly moving film", "two hours", "bad"]
DECODING = {"beams": 4, "length_penalty": 0.8, "no_repeat_ngram": 3, "max_new_tokens": 8, "batch_size": 2}
END = 2


def model():
    """Layers of other heads and neurons, and weights that write different things."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 24}
    made = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=END, eos_token_id=END)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5)
    cut(made, [LayerPlan((1,), tuple(range(5))), LayerPlan((0, 2, 3), tuple(range(50)))])
    return made


def main() -> None:
    """Write the folder of this release, unless it is there."""
    place = GOLDEN / dsee.__version__
    folder, notes = place / "gpt2-cached", place / "expected.json"
    if folder.exists():
        raise SystemExit(f"{folder} is there already; golden files stay as they were written.")
    made, words = model(), tokenizer()
    words.eos_token = words.convert_ids_to_tokens(END)
    ids = words(PROMPTS, add_special_tokens=False)["input_ids"]
    facts = {"writing": {"before": "", "after": "", "decoding": DECODING, "end": [END]}}
    dsee.export_onnx(made, folder, tokenizer=words, max_length=20, facts=facts)
    with torch.no_grad():
        written = [made.generate(torch.tensor([row]), max_new_tokens=8, do_sample=False)[0, len(row) :] for row in ids]
        logits = made(torch.tensor([[5, 6, 7]])).logits[0, -1]
    expected = json.loads(notes.read_text()) if notes.exists() else {}
    expected[folder.name] = {
        "prompts": PROMPTS,
        "tokens": [row.tolist() for row in written],
        "logits": logits.tolist(),
        "texts": write_texts(made, words, ids, DecodingSpec(**DECODING)),
    }
    notes.write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
