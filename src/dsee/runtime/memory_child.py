"""Run by :func:`dsee.runtime.peak_memory` in a fresh process: prints two figures as JSON."""

from __future__ import annotations

import json
import sys


def main(folder: str, batch: str, sequence: str) -> None:
    """Load, run once, print ``{"imports": bytes, "peak": bytes}``.

    Args:
        folder: the artifact.
        batch: sentences, as written on the command line.
        sequence: tokens per sentence, likewise.
    """
    from dsee.artifact.manifest import read_manifest
    from dsee.runtime.memory import resident_peak

    if read_manifest(folder).kind == "onnx":
        from dsee.runtime.onnx_model import OnnxModel

        imports = resident_peak()
        onnx_model = OnnxModel(folder)
        onnx_model.run(onnx_model.sample(int(batch), int(sequence)))
    else:
        import torch

        from dsee.measure.sample import sample_inputs
        from dsee.registration import register
        from dsee.runtime.merged import load_merged

        register()
        imports = resident_peak()
        model = load_merged(folder)
        with torch.inference_mode():
            model(**sample_inputs(model, int(batch), int(sequence)))
    sys.stdout.write(json.dumps({"imports": imports, "peak": resident_peak()}) + "\n")
