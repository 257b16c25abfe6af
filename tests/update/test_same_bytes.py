"""The same configuration gives the same files, byte for byte."""

import os
import subprocess
import sys
from pathlib import Path

from peft import PeftModel

import dsee
from conftest import adapted, tiny_bert

#: Names in a set, whose order follows the hash seed.
TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense"]


def write(folder):
    """Two adapters: positions found by a decomposition and positions drawn at random."""
    model = adapted(tiny_bert(), target_modules=TARGETS, exclude_modules=["pooler", "embeddings", "lm_head"])
    model.add_adapter("drawn", dsee.DseeConfig(task_type="SEQ_CLS", support="random", target_modules=TARGETS))
    model.save_pretrained(folder)


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_two_saves_of_one_model_are_equal(tmp_path):
    model = adapted(tiny_bert())
    model.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_two_models_of_one_configuration_are_equal_on_disk(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_loaded_model_is_saved_to_the_same_files(tmp_path):
    adapted(tiny_bert()).save_pretrained(tmp_path / "a")
    PeftModel.from_pretrained(tiny_bert(), tmp_path / "a").save_pretrained(tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_process_with_another_hash_seed_writes_the_same_bytes(tmp_path):
    write(tmp_path / "here")
    seed = next(s for s in ("1", "2") if s != os.environ.get("PYTHONHASHSEED"))
    program = "import sys; from update.test_same_bytes import write; write(sys.argv[1])"
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "there")], env=environment, check=True)
    assert content(tmp_path / "here") == content(tmp_path / "there")
