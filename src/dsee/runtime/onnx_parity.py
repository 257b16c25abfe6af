"""Does the exported model say what the model says?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsee.errors import ExportError
from dsee.measure.sample import sample_inputs
from dsee.modes import evaluating
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
    names = [entry.name for entry in session.get_inputs()]
    differences, scales = [], []
    for batch, sequence in SHAPES:
        inputs = sample_inputs(model, batch, min(sequence, limit), padded=True)
        if TYPES in names:
            inputs[TYPES] = (torch.arange(inputs["input_ids"].shape[1]) % 2).expand_as(inputs["input_ids"])
        # a model that classifies makes what its decoder reads by itself
        inputs = {name: inputs[name] for name in names}
        if DECODER in inputs:
            inputs[DECODER] = inputs[DECODER][:, : max(1, sequence // 2)]
        with evaluating(model), torch.inference_mode():
            expected = model(**inputs)["logits"].float().cpu().numpy()
        found = session.run(None, {name: tensor.cpu().numpy() for name, tensor in inputs.items()})[0]
        if found.shape != expected.shape:
            raise ExportError(f"The exported model gives shape {found.shape} where the model gives {expected.shape}.")
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
