"""``dsee doctor``."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from dsee._version import __version__

#: What dsee works with, and which extra brings it.
PACKAGES = {
    "torch": "",
    "transformers": "",
    "peft": "",
    "safetensors": "",
    "datasets": "",
    "onnxruntime": "onnx",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "matplotlib": "demo",
}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this installation has: packages, the CPU's sparse kernels, GPUs; and what is missing."""
    found = facts()
    typer.echo(json.dumps(found, indent=2) if as_json else text(found))


def facts() -> dict[str, Any]:
    """Return what there is."""
    import torch

    from dsee.kernels import library, why_not

    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    kernels = library()
    return {
        "dsee": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "threads": torch.get_num_threads(),
        "kernels": {
            "compiled": kernels is not None,
            "in_use": kernels.path if kernels else None,
            "this_machine_runs": kernels.paths if kernels else [],
            "why_not": why_not(),
        },
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def text(found: dict[str, Any]) -> str:
    """Return the facts as lines.

    Args:
        found: what :func:`facts` returns.
    """
    lines = [f"dsee {found['dsee']}, Python {found['python']}, {found['system']} ({sys.prefix})"]
    for name, number in found["packages"].items():
        extra = PACKAGES[name]
        missing = f"missing; pip install 'dsee[{extra}]' brings it" if extra else "missing"
        lines.append(f"  {name:13} {number or missing}")
    kernels = found["kernels"]
    if kernels["compiled"]:
        others = ", ".join(kernels["this_machine_runs"])
        lines.append(f"sparse kernels: {kernels['in_use']} (this machine runs {others}); {found['threads']} thread(s)")
    else:
        lines.append(f"sparse kernels: none, {kernels['why_not']}. Sparse models run densely here.")
        if "not compiled" in kernels["why_not"]:
            lines.append("  Install a C compiler (Debian: gcc libc6-dev) and install dsee again to have them.")
    lines.append("GPUs: " + (", ".join(found["gpus"]) or "none"))
    return "\n".join(lines)
