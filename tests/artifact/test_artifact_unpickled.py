"""Nothing is ever unpickled, whatever the file is called and whatever its hash says."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from artifact_tools import rehash, unevenly_cut
from safetensors.torch import load_file

import dsee
from conftest import adapted, tiny_bert
from dsee import ArtifactError

WEIGHTS = ["model.safetensors", "adapter/adapter_model.safetensors"]


class Burglar:
    """Leaves a mark when unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return Path.touch, (Path(self.mark),)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return dsee.save(adapted(unevenly_cut(tiny_bert())), tmp_path_factory.mktemp("pickled") / "out")


@pytest.fixture
def artifact(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "out")


def test_the_burglar_would_leave_a_mark(tmp_path):
    pickle.loads(pickle.dumps(Burglar(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("agree", [False, True], ids=["damaged", "rehashed"])
@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_pickle_in_the_place_of_weights_is_not_run(artifact, tmp_path, name, form, agree):
    burglar = Burglar(tmp_path / "mark")
    if form == "pickle":
        (artifact / name).write_bytes(pickle.dumps(burglar))
    else:
        torch.save({"weight": burglar}, artifact / name)
    if agree:
        rehash(artifact)
    with pytest.raises(ArtifactError, match=str(artifact)):
        dsee.load(artifact)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", WEIGHTS)
def test_old_style_weights_are_not_opened_at_all(artifact, tmp_path, name):
    # harmless ones: even these would have to be unpickled
    path = artifact / name
    weights = load_file(path)
    path.unlink()
    torch.save(weights, path.with_name({"model": "pytorch_model"}.get(path.stem, path.stem) + ".bin"))
    with pytest.raises(ArtifactError, match=str(artifact)):
        dsee.load(rehash(artifact))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "adapter/adapter_model.bin", "training_args.bin", "scheduler.pt"]
)
def test_a_pickle_beside_the_weights_is_not_run(artifact, tmp_path, name):
    torch.save({"weight": Burglar(tmp_path / "mark")}, artifact / name)
    assert dsee.load(rehash(artifact))
    assert not (tmp_path / "mark").exists()


def test_code_that_a_configuration_points_to_is_not_run(artifact, tmp_path):
    (artifact / "burglar.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).touch()\n")
    path = artifact / "config.json"
    content = json.loads(path.read_text())
    content["auto_map"] = {"AutoConfig": "burglar.Config", "AutoModelForSequenceClassification": "burglar.Model"}
    path.write_text(json.dumps(content))
    assert dsee.load(rehash(artifact))
    assert not (tmp_path / "mark").exists()
