"""What figures were measured on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from dsee.kernels import library, why_not


def hardware() -> dict[str, Any]:
    """Return processor, machine, torch's version, the GPU if there is one, and which sparse kernels run."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found = library()
    return {
        "processor": name,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "gpu": gpu,
        "kernels": found.path if found else f"none ({why_not()})",
    }
