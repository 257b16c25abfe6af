"""Folders written by a release load in every later one, with the logits they had."""

import json

import pytest
import torch
from artifact_tools import bytes_of
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from write_golden import FORMATS, GOLDEN, WEIGHTS, bert, logits_of, zeros_of

import dsee
from dsee.artifact import FORMAT, read_manifest

RELEASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
FOLDERS = [
    (release, path.name) for release in RELEASES for path in sorted((GOLDEN / release).iterdir()) if path.is_dir()
]


def expected(release, name):
    return json.loads((GOLDEN / release / "expected.json").read_text())[name]


@pytest.mark.parametrize(("release", "name"), FOLDERS)
def test_a_golden_folder_gives_its_logits(release, name):
    folder = GOLDEN / release / name
    before = bytes_of(folder)
    model = dsee.load(folder, **({"base": bert()} if read_manifest(folder).kind == "update" else {}))
    wanted = expected(release, name)
    torch.testing.assert_close(logits_of(model), torch.tensor(wanted["logits"]), rtol=0, atol=2e-5)
    assert zeros_of(model) == wanted["zeros"]
    assert len(dsee.history(model)) == wanted["steps"]
    assert bytes_of(folder) == before


@pytest.mark.parametrize(
    ("release", "name"), [pair for pair in FOLDERS if pair[1] not in ("adapted", "gated", "update")]
)
def test_a_golden_folder_is_read_by_the_auto_classes(release, name):
    auto = AutoModelForCausalLM if "llama" in name else AutoModelForSequenceClassification
    model = auto.from_pretrained(GOLDEN / release / name)
    torch.testing.assert_close(logits_of(model), torch.tensor(expected(release, name)["logits"]), rtol=0, atol=2e-5)


@pytest.mark.parametrize("release", RELEASES)
def test_a_golden_update_fits_golden_bases(release):
    place = GOLDEN / release
    wanted = torch.tensor(expected(release, "update")["logits"])
    for base in ("stock-weights", "compact-weights"):
        model = dsee.load(place / "update", base=dsee.load(place / base))
        torch.testing.assert_close(logits_of(model), wanted, rtol=0, atol=2e-5)
    assert dsee.prune(dsee.load(place / "stock"), WEIGHTS).zeros


def test_this_release_has_its_golden_files():
    assert dsee.__version__ in RELEASES
    assert {name for release, name in FOLDERS if release == dsee.__version__} == set(FORMATS)
    formats = {read_manifest(GOLDEN / release / name).format for release, name in FOLDERS}
    assert formats == set(range(1, FORMAT + 1))


@pytest.mark.parametrize(("release", "name"), FOLDERS)
def test_plain_transformers_knows_the_type_of_stock_folders_alone(release, name):
    path = GOLDEN / release / name / "config.json"
    if path.is_file():
        own = json.loads(path.read_text())["model_type"].startswith("dsee_")
        assert own == name.startswith(("cut", "split", "compact"))


def test_golden_files_are_small():
    for release, name in FOLDERS:
        assert sum(path.stat().st_size for path in (GOLDEN / release / name).rglob("*") if path.is_file()) < 40_000
