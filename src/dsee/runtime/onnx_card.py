"""The README.md inside an ONNX folder; its code runs with onnxruntime and tokenizers and nothing else."""

from __future__ import annotations

from typing import Any

from dsee.runtime.onnx_cache import POSITIONS
from dsee.runtime.onnx_model import DECODER

_TEXT = """# {name}, ONNX {precision}

Exported by dsee; logits within {logit_error:.2g} of the original's largest logit, up to {max_length} tokens.
Weights: {weight_bytes:,} bytes. {tested}
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
_NEXT = """last = encoded_mask.sum(axis=1) - 1
for row, place in zip(logits, last):
    print(int(row[place].argmax()))"""

_AGAIN = (
    "There is no cache: each new token reads everything again. `dsee.runtime.OnnxModel(folder).generate` does that."
)
_WRITES = (
    "It writes text: `logits` are (texts, tokens, vocabulary), and the code prints the likeliest next token of each. "
    + _AGAIN
)
_READS = (
    "It writes text from what its encoder has read: `decoder_input_ids` holds what is written so far, and the code "
    "prints the likeliest first token. " + _AGAIN
)
_REMEMBERS = (
    "It writes text, here the likeliest tokens. The graph gives keys and values of all it has read as `present.*`, and "
    "takes them back as `past_key_values.*`, so that a step reads one token. Several texts, beams: "
    "`dsee.runtime.OnnxModel(folder)`."
)

_STEPS = """import json

import numpy as np
import onnxruntime
{imports}
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
ends = json.load(open("labels.json"))["generation"]["end"]
past = {{
    each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), dtype=np.float32)
    for each in session.get_inputs()
    if each.name.startswith("past_key_values.")
}}

{prompt}
read, text = 0, []
while len(text) < 20:
    inputs = {{
        "input_ids": np.array([ids], dtype=np.int64),
        "attention_mask": np.ones((1, read + len(ids)), dtype=np.int64),
        "position_ids": np.arange(read, read + len(ids), dtype=np.int64)[None],
    }}
    logits, *present = session.run(None, inputs | past)
    past, read = dict(zip(past, present)), read + len(ids)
    ids = [int(logits[0, -1].argmax())]
    text += ids
    if ids[0] in ends:
        break"""
_STEPS_WITH = {
    "imports": 'from tokenizers import Tokenizer\n\ntokenizer = Tokenizer.from_file("tokenizer.json")',
    "prompt": 'ids = tokenizer.encode("a quietly moving film").ids',
}
_STEPS_WITHOUT = {
    "imports": "",
    "prompt": "# token ids of the tokenizer that the model was tuned with\nids = [5, 6, 7, 8]",
}

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


def card(name: str, facts: dict[str, Any], described: dict[str, Any], inputs: list[str], tokenizer: bool) -> str:
    """Return the card.

    Args:
        name: class of the model.
        facts: precision, logit_error, max_length and weight_bytes of the export, and "test" and "original" where it
            was evaluated.
        described: the content of ``labels.json``.
        inputs: names of the graph's inputs, keys and values left out.
        tokenizer: whether a tokenizer lies in the folder.
    """
    needs = "onnxruntime tokenizers" if tokenizer else "onnxruntime"
    if POSITIONS in inputs:
        code = _STEPS.format(**(_STEPS_WITH if tokenizer else _STEPS_WITHOUT))
        show, about = "print(text)" + ("\nprint(tokenizer.decode(text))" if tokenizer else ""), _REMEMBERS
    else:
        code, show, about = _at_once(described, inputs, tokenizer)
    facts = facts | {"tested": _tested(facts)}
    return _TEXT.format(name=name, labels=about, code=code, show=show, needs=needs, **facts)


def _tested(facts: dict[str, Any]) -> str:
    """What the export was evaluated to, beside the model it was made from."""
    before = facts.get("original", {})
    return "".join(
        f"\n{metric} on the test part: {value:.4g}"
        + (f" (the original: {before[metric]:.4g})." if metric in before else ".")
        for metric, value in facts.get("test", {}).items()
    )


def _at_once(described: dict[str, Any], inputs: list[str], tokenizer: bool) -> tuple[str, str, str]:
    """Code that runs the graph once, code that shows what it says, and what there is to say of it."""
    code = _WITH_TOKENIZER if tokenizer else _WITHOUT_TOKENIZER
    arrays = {n: f"np.array([e.{_ANSWERS[n]} for e in encoded], dtype=np.int64)" for n in inputs if n in _ANSWERS}
    if not tokenizer:
        arrays = {"input_ids": "input_ids", "attention_mask": "np.ones_like(input_ids)"}
    last = arrays["attention_mask"]
    generation = described.get("generation")
    if DECODER in inputs:
        start = (generation or {}).get("start") or 0
        arrays[DECODER] = f"np.full((len({'encoded' if tokenizer else 'input_ids'}), 1), {start}, dtype=np.int64)"
        last = f"np.ones_like({arrays[DECODER]})"
    code = code.replace("INPUTS", "".join(f'    "{n}": {array},\n' for n, array in arrays.items()))
    if generation is not None:
        code = code.replace('labels = json.load(open("labels.json"))["labels"]\n', "").replace("import json\n\n", "")
        return code, _NEXT.replace("encoded_mask", last), _READS if DECODER in inputs else _WRITES
    if described["kind"] == "regression":
        return code, _SCORE, "The answer is a number."
    show = _SEVERAL if described["kind"] == "multi-label" else _CHOOSE
    return code, show, f"Labels: {', '.join(described['labels'])}"
