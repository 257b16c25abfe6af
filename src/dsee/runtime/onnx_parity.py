"""Does the exported model say what the model says?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsee.errors import ExportError
from dsee.measure.sample import sample_inputs
from dsee.modes import evaluating
from dsee.runtime.onnx_cache import PAST, POSITIONS, nothing_read, positions
from dsee.runtime.onnx_model import DECODER, TYPES

#: (batch, sequence) shapes to compare on; none is the traced one, so that a frozen dimension shows.
SHAPES = ((1, 8), (3, 33), (4, 64))


def check_parity(model: Any, path: Path, limit: int, tolerance: float) -> float:
    """Compare logits on shapes other than the traced one, padding included.

    Args:
        model: the PyTorch model.
        path: the ONNX file.
        limit: longest input in tokens.
        tolerance: largest allowed difference, relative to the largest logit.

    Returns:
        The largest difference of a logit over the largest absolute logit.

    Raises:
        ExportError: the difference is larger than allowed, or not a number.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs() if not entry.name.startswith(PAST)]
    differences, scales = [], []
    for batch, sequence in SHAPES:
        inputs = sample_inputs(model, batch, min(sequence, limit), padded=True)
        if TYPES in names:
            inputs[TYPES] = (torch.arange(inputs["input_ids"].shape[1]) % 2).expand_as(inputs["input_ids"])
        # a model that classifies makes what its decoder reads by itself
        inputs = {name: inputs[name] for name in names if name != POSITIONS}
        if DECODER in inputs:
            inputs[DECODER] = inputs[DECODER][:, : max(1, sequence // 2)]
        with evaluating(model), torch.inference_mode():
            expected = model(**inputs)["logits"].float().cpu().numpy()
        arrays = {name: tensor.cpu().numpy() for name, tensor in inputs.items()}
        found = _in_two_steps(session, arrays) if POSITIONS in names else session.run(None, arrays)[0]
        if found.shape != expected.shape:
            raise ExportError(f"The exported model gives shape {found.shape} where the model gives {expected.shape}.")
        if found.ndim == 3 and DECODER not in inputs:
            # behind the end of a text there may be nothing to attend to, and every runtime has its own answer to that
            real = arrays["attention_mask"] == 1
            found, expected = found[real], expected[real]
        # the maximum of arrays and not of floats: max(0.0, nan) is 0.0
        differences.append(np.abs(found - expected).max())
        scales.append(np.abs(expected).max())
    error = float(np.max(differences)) / max(float(np.max(scales)), 1e-12)
    if not error <= tolerance:
        raise ExportError(
            f"The exported model's logits differ by {error:.2g} of the largest one (allowed: {tolerance:.2g}), so the "
            "export was not kept. For int8, a larger tolerance= keeps it; check the task metric then."
        )
    return float(f"{error:.3g}")


def _in_two_steps(session: Any, arrays: dict[str, Any]) -> Any:
    """Logits of a graph with a cache, (batch, tokens, vocabulary): the first half read, then the rest of it."""
    mask, places = arrays["attention_mask"], positions(arrays["input_ids"])
    half = max(1, mask.shape[1] // 2)
    past, found = nothing_read(session, len(mask)), []
    for start, stop in ((0, half), (half, mask.shape[1])):
        if start == stop:
            continue
        inputs = {
            "input_ids": arrays["input_ids"][:, start:stop],
            "attention_mask": mask[:, :stop],
            POSITIONS: places[:, start:stop],
        }
        logits, *present = session.run(None, inputs | past)
        past = dict(zip(past, present, strict=True))
        found.append(logits)
    return np.concatenate(found, axis=1)
