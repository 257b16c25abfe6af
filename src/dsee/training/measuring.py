"""The last stage: latency, memory and bytes of all variants, side by side."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from dsee.artifact.manifest import read_manifest
from dsee.masks import masked_linears
from dsee.measure import folder_bytes, interleaved
from dsee.measure.sample import sample_inputs
from dsee.modes import torch_threads
from dsee.runtime import OnnxModel, peak_memory
from dsee.runtime.merged import load_merged
from dsee.runtime.optimize import optimize
from dsee.training.progress import Bar
from dsee.training.setting import Setting


def measure(setting: Setting, bar: Bar, variants: dict[str, Path]) -> dict[str, Any]:
    """Time the variants interleaved in this process, one thread each, and their memory in processes of their own.

    Args:
        setting: the run.
        bar: advanced by one for each variant's memory, and by the rest for the timing.
        variants: row name -> artifact or ONNX folder.

    Returns:
        row name -> latency, memory and bytes.
    """
    shape = setting.recipe.measure
    calls: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    kernels: dict[str, str] = {}
    for name, folder in variants.items():
        if read_manifest(folder).kind == "onnx":
            onnx_model = OnnxModel(folder, threads=1)
            calls[name] = partial(onnx_model.run, onnx_model.sample(shape.batch, shape.sequence))
            sizes[name] = folder_bytes(folder, weights_only=True)
        else:
            model = load_merged(folder)
            inputs = sample_inputs(model, shape.batch, shape.sequence)
            if masked_linears(model):
                # as it would be deployed: zeros in weights are worth no time to anything but the kernels
                with torch_threads(1):
                    kernels[name] = optimize(model, inputs).summary
            calls[name] = partial(model, **inputs)
            sizes[name] = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    bar.note("latency, one thread")
    times = interleaved(calls, runs=shape.runs, threads=1)
    calls.clear()
    results: dict[str, Any] = {}
    for name, folder in variants.items():
        results[name] = {"latency": asdict(times[name]), "memory": None, "bytes": sizes[name]}
        results[name]["kernels"] = kernels.get(name)
        if shape.memory:
            bar.note(f"memory of {name}")
            results[name]["memory"] = asdict(peak_memory(folder, batch=shape.batch, sequence=shape.sequence))
        bar.advance()
    return results
