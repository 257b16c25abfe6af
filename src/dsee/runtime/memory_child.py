"""Run by :func:`dsee.runtime.peak_memory` in a fresh process: prints two figures as JSON."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path


def main(folder: str, batch: str, sequence: str) -> None:
    """Load, run once, print ``{"imports": bytes, "peak": bytes}``.

    Args:
        folder: the artifact.
        batch: sentences, as written on the command line.
        sequence: tokens per sentence, likewise.
    """
    from dsee.runtime.memory import resident_peak
    from dsee.runtime.opened import is_onnx, open_model

    path, sizes = Path(folder), (int(batch), int(sequence))
    if not is_onnx(path):
        # what has to be imported to run it, so that the rest is the model
        import_module("dsee.runtime.torch_model")
    imports = resident_peak()
    model = open_model(path, merged=True)
    model.run(model.sample(*sizes))  # type: ignore[arg-type]  # each kind runs what it samples
    sys.stdout.write(json.dumps({"imports": imports, "peak": resident_peak()}) + "\n")
