"""Run by :func:`dsee.runtime.peak_memory` in a fresh process: prints two figures as JSON."""

from __future__ import annotations

import json
import sys

# ``python -m`` imports the package first; the ONNX runner needs neither torch nor the registration
import dsee_command  # noqa: F401 - its presence keeps ``import dsee`` light


def main(folder: str, batch: int, sequence: int) -> None:
    """Load, run once, print ``{"imports": bytes, "peak": bytes}``."""
    from dsee.artifact.manifest import read_manifest
    from dsee.runtime.memory import resident_peak

    if read_manifest(folder).kind == "onnx":
        from dsee.runtime.onnx_model import OnnxModel

        imports = resident_peak()
        onnx_model = OnnxModel(folder)
        onnx_model.run(onnx_model.sample(batch, sequence))
    else:
        import torch

        import dsee
        from dsee.measure.sample import sample_inputs
        from dsee.registration import register

        register()
        imports = resident_peak()
        model = dsee.load(folder)
        with torch.inference_mode():
            model(**sample_inputs(model, batch, sequence))
    sys.stdout.write(json.dumps({"imports": imports, "peak": resident_peak()}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
