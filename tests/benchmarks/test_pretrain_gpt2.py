"""Pre-training a small GPT-2: a killed run ends with the bytes of an unbroken one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from writing_tools import rows

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pretrain_gpt2.py"
SIZES = ["--vocabulary", "300", "--layers", "1", "--width", "16", "--heads", "2", "--length", "16"]
SIZES += ["--positions", "32", "--batch", "4", "--warmup", "5"]


def command(folder, out, *more):
    return [sys.executable, str(SCRIPT), str(folder / out), "--text", str(folder / "text.txt"), *SIZES, *more]


def run(*arguments):
    return subprocess.run(command(*arguments), check=False, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text.txt").write_text("".join(row["target"] + "\n" for row in rows(150)), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(folder):
    steps = ("--steps", "400", "--every", "1")
    killed = subprocess.Popen(command(folder, "killed", *steps), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (folder / "killed" / "checkpoint.safetensors").is_file():
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (folder / "killed" / "model.safetensors").is_file()
    again = run(folder, "killed", *steps)
    assert "going on from step" in again.stdout, again.stderr
    whole = run(folder, "whole", *steps)
    assert "going on" not in whole.stdout
    files = [(folder / out / "model.safetensors").read_bytes() for out in ("killed", "whole")]
    assert files[0] == files[1]
    first, last = (line.split("loss ")[1].split()[0] for line in (whole.stdout.splitlines()[i] for i in (1, -1)))
    assert float(last) < 0.7 * float(first)
    assert AutoModelForCausalLM.from_pretrained(folder / "whole").config.vocab_size == 300
    assert len(AutoTokenizer.from_pretrained(folder / "whole")) == 300


@pytest.mark.slow
def test_a_checkpoint_of_other_texts_is_refused(folder):
    assert run(folder, "out", "--steps", "2").returncode == 0
    (folder / "text.txt").write_text("other words\n" * 200, encoding="utf-8")
    refused = run(folder, "out", "--steps", "2")
    assert refused.returncode == 1
    assert "other arguments or texts" in refused.stderr
