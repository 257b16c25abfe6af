"""The README.md inside an ONNX folder; its code runs with onnxruntime and tokenizers and nothing else."""

from __future__ import annotations

from typing import Any

_TEXT = """# {name}, ONNX {precision}

Exported by dsee; logits within {logit_error:.2g} of the original's largest logit, up to {max_length} tokens.
Needs `pip install onnxruntime tokenizers`. Run this in the folder:

```python
import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
labels = json.load(open("labels.json"))["labels"]

encoded = tokenizer.encode_batch(["a quietly moving film", "two hours I will never get back"])
logits = session.run(None, {{
    "input_ids": np.array([e.ids for e in encoded], dtype=np.int64),
    "attention_mask": np.array([e.attention_mask for e in encoded], dtype=np.int64),
}})[0]
for row in logits:
    print(labels[int(row.argmax())])
```

Labels: {labels}
"""


def card(name: str, facts: dict[str, Any], labels: list[str]) -> str:
    """Return the card.

    Args:
        name: class of the model.
        facts: precision, logit_error and max_length of the export.
        labels: class names by index.
    """
    return _TEXT.format(name=name, labels=", ".join(labels), **facts)
