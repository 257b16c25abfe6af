"""The command as a user types it: answers, exit codes, and one clear line for what is wrong."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import dsee_command as dsee_command_module
from chain import prepare
from conftest import sentences, write_csv

TEXTS = ["good film", "the plot was dull", "a very warm scene and a actor"]
ANSWERS = ["positive", "negative", "positive"]


@pytest.mark.parametrize("folder", ["", "model", "onnx-fp32", "onnx-int8"])
def test_predict_answers_from_every_folder(dsee_command, results, folder):
    code, out, err = dsee_command("predict", results / folder, *TEXTS)
    assert code == 0, err
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[0] for line in lines] == ANSWERS
    assert [line[2] for line in lines] == TEXTS
    assert all(0.5 <= float(line[1]) <= 1 for line in lines)


def test_torch_and_onnx_give_the_same_probabilities(dsee_command, results):
    found = []
    for folder in ("model", "onnx-fp32"):
        _, out, _ = dsee_command("predict", results / folder, "--json", *TEXTS)
        rows = [json.loads(line) for line in out.splitlines()]
        assert [row["text"] for row in rows] == TEXTS
        found.append([list(row["scores"].values()) for row in rows])
    np.testing.assert_allclose(*found, atol=1e-4)
    np.testing.assert_allclose(np.sum(found[0], axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_predict_from_files_keeps_the_order(dsee_command, results, tmp_path, batch_size):
    rows = sentences(7, seed=3)
    (tmp_path / "lines.txt").write_text("\n".join(text for text, _ in rows) + "\n", encoding="utf-8")
    write_csv(tmp_path / "table.csv", rows, header=("sentence", "label"))
    given = ("--batch-size", batch_size)
    _, lines, _ = dsee_command("predict", results / "onnx-fp32", "--file", tmp_path / "lines.txt", *given)
    table = tmp_path / "table.csv"
    _, cells, _ = dsee_command("predict", results / "onnx-fp32", "--file", table, "--column", "sentence", *given)
    assert [line.split("\t")[2] for line in lines.splitlines()] == [text for text, _ in rows]
    assert [line.split("\t")[0] for line in cells.splitlines()] == [label for _, label in rows]


def test_predicting_from_onnx_loads_no_torch(results):
    script = (
        "import sys; sys.argv = ['dsee', 'predict', sys.argv[1], 'good film']\n"
        "import atexit; atexit.register(lambda: print('torch' in sys.modules, 'transformers' in sys.modules))\n"
        "from dsee_command import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(results / "onnx-int8")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("positive\t")
    assert done.stdout.splitlines()[-1] == "False False"


def test_help_loads_no_torch_and_names_the_exit_codes():
    script = (
        "import sys; sys.argv = ['dsee', '--help']\n"
        "import atexit; atexit.register(lambda: print('torch' in sys.modules, 'pydantic' in sys.modules))\n"
        "from dsee_command import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Exit codes: 0 done, 1 failed, 2 wrong usage or input, 130" in done.stdout
    assert done.stdout.splitlines()[-1] == "False False"


def test_inspect_tells_structure_history_and_wholeness(dsee_command, results):
    code, out, _ = dsee_command("inspect", results)
    assert code == 0
    for part in (
        "model, whole",
        "heads       3 3 3",
        "neurons     24 24 24",
        "step 2      prune:",
        "model.safetensors",
    ):
        assert part in out


def test_inspect_as_json_counts_the_weights(dsee_command, results):
    import dsee

    _, out, _ = dsee_command("inspect", results / "model", "--json")
    facts = json.loads(out)
    model = dsee.load(results / "model")
    assert facts["parameters"] == sum(p.numel() for p in model.state_dict().values())
    assert [step["step"] for step in facts["history"]] == ["tune", "prune", "recover", "merge"]


def test_run_prints_the_table_and_goes_on(dsee_command, finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    code, out, err = dsee_command("run", folder / "recipe.yaml")
    assert code == 0, err
    assert "done before" in err
    for name in ("dense", "pruned", "recovered", "ONNX fp32", "ONNX int8"):
        assert name in out
    assert (folder / "out" / "report.md").is_file()


def damaged(results, tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(results / "model", folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 4
    weights.write_bytes(bytes(content))
    return folder


@pytest.mark.parametrize(("damage", "word"), [("truncated", "truncated"), ("flipped", "SHA-256 differs")])
@pytest.mark.parametrize("verb", ["predict", "inspect"])
def test_a_damaged_artifact_is_an_error_that_names_the_file(dsee_command, results, tmp_path, verb, damage, word):
    folder = damaged(results, tmp_path, damage)
    code, out, err = dsee_command(verb, folder, *(["good film"] if verb == "predict" else []))
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert "model.safetensors" in err
    assert word in err


def test_a_newer_format_says_how_to_upgrade(dsee_command, results, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(results / "model", folder)
    manifest = json.loads((folder / "dsee.json").read_text(encoding="utf-8"))
    (folder / "dsee.json").write_text(json.dumps(manifest | {"format": 99}), encoding="utf-8")
    code, _, err = dsee_command("inspect", folder)
    assert code == 1
    assert "pip install --upgrade dsee" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["predict", "nowhere", "text"], "there is no such folder"),
        (["predict", "{results}"], "nothing to classify"),
        (["predict", "{results}", "text", "--file", "{tmp}/x.txt"], "sentences or --file, not both"),
        (["predict", "{results}", "--file", "{tmp}/x.txt"], "there is no such file"),
        (["run", "nowhere.yaml"], "there is no such recipe"),
    ],
)
def test_wrong_input_exits_with_2(dsee_command, results, tmp_path, arguments, expected):
    code, _, err = dsee_command(*(a.format(results=results, tmp=tmp_path) for a in arguments))
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["runn"], ["predict"], ["predict", "x", "y", "--nope"], ["demo", "--seed", "x"]])
def test_wrong_usage_exits_with_2(dsee_command, arguments):
    code, _, err = dsee_command(*arguments)
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": {"train": "train.csv", "text": "txet"}}, "no column 'txet' (data.text). Did you mean 'text'"),
        ({"model": "./nowhere"}, "is not a folder with a model in it"),
        ({"update": {"target_modules": ["qurey"]}}, "is called 'qurey'. Did you mean 'query'"),
        ({"update": {"support": "magnitud"}}, "Did you mean 'magnitude'"),
        ({"update": {"r": 0, "n_sparse": 0}}, "leave nothing to train"),
        ({"prune": {"heads": {"amount": 0.25, "score": "updat"}}}, "Did you mean 'update'"),
        ({"prune": {"heads": 4}}, "at least one stays in each"),
    ],
)
def test_bad_recipes_fail_before_any_training(dsee_command, tmp_path, model_folder, changes, expected):
    recipe = prepare(tmp_path, model_folder, **changes)
    code, _, err = dsee_command("run", recipe)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "stages" / "tune.json").exists()


def test_an_architecture_without_a_map_is_refused_before_training(dsee_command, tmp_path):
    from transformers import XLNetConfig, XLNetForSequenceClassification

    from conftest import tiny_tokenizer

    model = XLNetForSequenceClassification(XLNetConfig(vocab_size=40, d_model=16, n_layer=1, n_head=2, d_inner=16))
    model.save_pretrained(tmp_path / "xlnet")
    tiny_tokenizer().save_pretrained(tmp_path / "xlnet")
    recipe = prepare(tmp_path, tmp_path / "xlnet", update={"target_modules": ["layer_1"]})
    code, _, err = dsee_command("run", recipe)
    assert code == 2
    assert "no architecture map for 'xlnet'" in err
    assert "bert" in err


def test_a_fault_of_ours_is_one_line_unless_asked_for(dsee_command, monkeypatch, results):
    import dsee.artifact.manifest

    def broken(*_):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(dsee.artifact.manifest, "verify", broken)
    code, _, err = dsee_command("inspect", results)
    assert code == 1
    assert "ZeroDivisionError: oops" in err
    assert "DSEE_TRACEBACK=1" in err
    monkeypatch.setenv("DSEE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        dsee_command("inspect", results)


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, dsee_command_module.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_sleep_soon_unless_the_user_says_otherwise(given, spins):
    environment = dict(given)
    dsee_command_module.share_cores(environment)
    assert environment.pop("GOMP_SPINCOUNT", None) == spins
    assert environment == {name: value for name, value in given.items() if name != "GOMP_SPINCOUNT"}


def test_the_command_says_so_before_torch_is_loaded(tmp_path):
    script = "import os, sys, dsee_command as c; c.share_cores = lambda e: print('torch' in sys.modules); c.main()"
    done = subprocess.run([sys.executable, "-c", script, "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith("False\n"), done.stderr
