"""Peak memory of loading and running an artifact, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dsee.errors import DseeError

#: ``dsee_command`` first: its presence keeps ``import dsee`` light, so that an ONNX model is measured without torch.
CHILD = "import dsee_command, sys; from dsee.runtime.memory_child import main; main(*sys.argv[1:])"


@dataclass(frozen=True)
class PeakMemory:
    """Resident memory in bytes.

    Attributes:
        imports: after importing what is needed to run, before the model.
        peak: the most that loading the model and running it took.
    """

    imports: int
    peak: int

    @property
    def model(self) -> int:
        """What the model added."""
        return self.peak - self.imports


def resident_peak() -> int:
    """Return the most resident memory this process has had so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # unlike ru_maxrss, VmHWM does not inherit the parent's peak through fork and exec
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_memory(folder: str | Path, *, batch: int = 1, sequence: int = 128) -> PeakMemory:
    """Load an artifact or an ONNX folder in a fresh process, run it once, and report its peak memory.

    Args:
        folder: what :func:`dsee.save` or :func:`dsee.export_onnx` wrote.
        batch: sentences.
        sequence: tokens per sentence.

    Raises:
        DseeError: the process failed; its last words are in the message.
    """
    command = [sys.executable, "-c", CHILD, str(folder), str(batch), str(sequence)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - our own module
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise DseeError(f"Measuring the memory of {folder} failed: {last[0]}")
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    return PeakMemory(imports=figures["imports"], peak=figures["peak"])
