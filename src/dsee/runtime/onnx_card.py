"""The README.md inside an ONNX folder; its code runs with onnxruntime and tokenizers and nothing else."""

from __future__ import annotations

from typing import Any

_TEXT = """# {name}, ONNX {precision}

Exported by dsee; logits within {logit_error:.2g} of the original's largest logit, up to {max_length} tokens.
Needs `pip install {needs}`. Run this in the folder:

```python
{code}
for row in logits:
    print(labels[int(row.argmax())])
```

Labels: {labels}
"""

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
logits = session.run(None, {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)})[0]"""

#: Name of an input -> name of the tokenizer's answer.
_ANSWERS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


def card(name: str, facts: dict[str, Any], labels: list[str], inputs: list[str], tokenizer: bool) -> str:
    """Return the card.

    Args:
        name: class of the model.
        facts: precision, logit_error and max_length of the export.
        labels: class names by index.
        inputs: names of the graph's inputs.
        tokenizer: whether a tokenizer lies in the folder.
    """
    code, needs = _WITHOUT_TOKENIZER, "onnxruntime"
    if tokenizer:
        lines = [f'    "{n}": np.array([e.{_ANSWERS[n]} for e in encoded], dtype=np.int64),\n' for n in inputs]
        code, needs = _WITH_TOKENIZER.replace("INPUTS", "".join(lines)), "onnxruntime tokenizers"
    return _TEXT.format(name=name, labels=", ".join(labels), code=code, needs=needs, **facts)
