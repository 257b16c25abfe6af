"""The GPU benchmark where there is no GPU: what it refuses, and the page it would write."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu

FIGURES = {
    "gpu": "NVIDIA Made Up",
    "capability": [8, 0],
    "cuda": "0",
    "torch": "0",
    "dsee": "0",
    "inference": [
        {
            "dtype": "float16",
            "batch": 8,
            "sequence": 128,
            "ms": {"dense": 3.0, "2:4": 2.0},
            "chosen": {"2:4": 72, "dense": 2},
        }
    ],
    "training": [
        {"batch": 32, "sequence": 128, "ms": {"LoRA": 50.0, "DSEE": 40.0}, "peak_bytes": {"LoRA": 2e9, "DSEE": 1.5e9}}
    ],
}


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, arguments)])
    gpu.main()


def test_without_cuda_it_says_so_in_one_line_and_writes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "keep", lambda *_: pytest.fail("something was written"))
    with pytest.raises(SystemExit, match=r"^gpu.py: torch finds no CUDA device here; run this on .* GPU\.$"):
        call(monkeypatch)


def test_an_old_gpu_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    with pytest.raises(SystemExit, match=r"^gpu.py: 2:4 needs compute capability 8.0, and T4 has 7.5\.$"):
        call(monkeypatch)


def test_the_page_holds_the_figures_and_the_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "STORED", tmp_path / "gpu.json")
    with pytest.raises(SystemExit, match="run this without --table first"):
        call(monkeypatch, "--table")
    (tmp_path / "gpu.json").write_text(json.dumps(FIGURES))
    call(monkeypatch, "--table", "--into", tmp_path / "gpu.md")
    page = (tmp_path / "gpu.md").read_text()
    assert "NVIDIA Made Up (compute capability 8.0)" in page
    assert "| float16 | 8 x 128 | 3.00 ms | 2.00 ms | 1.50 | 72 of 74 |" in page
    assert "| 32 x 128 | 50.0 ms | 40.0 ms | 0.80 | 2.00 GB | 1.50 GB |" in page


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_it_measures(monkeypatch):
    gpu.refuse_without_gpu()
    monkeypatch.setattr(gpu, "ROUNDS", 2)
    assert set(gpu.inference("bfloat16", 1, 128)["ms"]) == {"dense", "2:4"}
    assert set(gpu.training(4, 32)["ms"]) == {"LoRA", "DSEE"}
