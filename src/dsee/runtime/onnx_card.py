"""The README.md inside an ONNX folder; its code runs with onnxruntime and tokenizers and nothing else."""

from __future__ import annotations

from typing import Any

from dsee.runtime.onnx_model import DECODER

_TEXT = """# {name}, ONNX {precision}

Exported by dsee; logits within {logit_error:.2g} of the original's largest logit, up to {max_length} tokens.
Needs `pip install {needs}`. Run this in the folder:

```python
{code}
{show}
```

{labels}
"""

_CHOOSE = """for row in logits:
    print(labels[int(row.argmax())])"""

_SCORE = """for row in logits:
    print(float(row[0]))"""

_SEVERAL = """for row in logits:
    print([label for label, logit in zip(labels, row) if logit > 0])"""

#: Texts are filled up on the right, so the last real token's logits say what comes next.
_WRITE = """last = encoded_mask.sum(axis=1) - 1
for row, place in zip(logits, last):
    print(int(row[place].argmax()))"""

_STEPS = (
    "There is no cache: each new token reads everything again. `dsee.runtime.OnnxModel(folder).generate` does that."
)
_WRITES = (
    "It writes text: `logits` are (texts, tokens, vocabulary), and the code prints the likeliest next token of each. "
    + _STEPS
)
_READS = (
    "It writes text from what its encoder has read: `decoder_input_ids` holds what is written so far, and the code "
    "prints the likeliest first token. " + _STEPS
)

_WITH_TOKENIZER = """import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
labels = json.load(open("labels.json"))["labels"]

encoded = tokenizer.encode_batch(["a quietly moving film", "two hours I will never get back"])
logits = session.run(None, {
INPUTS})[0]"""

_WITHOUT_TOKENIZER = """import json

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
labels = json.load(open("labels.json"))["labels"]

# token ids of the tokenizer that the model was tuned with, one row for each text
input_ids = np.array([[5, 6, 7, 8]], dtype=np.int64)
logits = session.run(None, {
INPUTS})[0]"""

#: Name of an input -> name of the tokenizer's answer.
_ANSWERS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


def card(
    name: str,
    facts: dict[str, Any],
    labels: list[str],
    inputs: list[str],
    tokenizer: bool,
    generation: dict[str, Any] | None = None,
    kind: str = "classification",
) -> str:
    """Return the card.

    Args:
        name: class of the model.
        facts: precision, logit_error and max_length of the export.
        labels: class names by index.
        inputs: names of the graph's inputs.
        tokenizer: whether a tokenizer lies in the folder.
        generation: the token that a decoder starts with, for a model that writes text.
        kind: "classification", "multi-label" or "regression", for the others.
    """
    code, needs = _WITHOUT_TOKENIZER, "onnxruntime"
    arrays = {n: f"np.array([e.{_ANSWERS[n]} for e in encoded], dtype=np.int64)" for n in inputs if n in _ANSWERS}
    if tokenizer:
        code, needs = _WITH_TOKENIZER, "onnxruntime tokenizers"
    else:
        arrays = {"input_ids": "input_ids", "attention_mask": "np.ones_like(input_ids)"}
    last = arrays["attention_mask"]
    if DECODER in inputs:
        start = (generation or {}).get("start") or 0
        arrays[DECODER] = f"np.full((len({'encoded' if tokenizer else 'input_ids'}), 1), {start}, dtype=np.int64)"
        last = f"np.ones_like({arrays[DECODER]})"
    code = code.replace("INPUTS", "".join(f'    "{n}": {array},\n' for n, array in arrays.items()))
    show, about = {"multi-label": _SEVERAL}.get(kind, _CHOOSE), f"Labels: {', '.join(labels)}"
    if kind == "regression":
        show, about = _SCORE, "The answer is a number."
    if generation is not None:
        code = code.replace('labels = json.load(open("labels.json"))["labels"]\n', "").replace("import json\n\n", "")
        show = _WRITE.replace("encoded_mask", last)
        about = _READS if DECODER in inputs else _WRITES
    return _TEXT.format(name=name, labels=about, code=code, show=show, needs=needs, **facts)
