"""``dsee bench``: names, files, pictures, and one clear line for what is wrong."""

import json
import sys

import pytest

FEW = ("--rounds", "2", "--warmup", "0", "--sequence", "8", "--no-memory")


def test_every_folder_gets_a_line_and_every_comparison_a_sentence(dsee_command, results, model_folder, tmp_path):
    code, out, err = dsee_command(
        *("bench", results, "--against", results / "onnx-int8", "--against", model_folder, *FEW),
        *("--batch", "1", "--batch", "2", "--json", tmp_path / "bench.json", "--plot", tmp_path / "bench.png"),
    )
    assert code == 0, err
    for part in ("1 x 8 tokens, one thread, 2 rounds", "2 x 8 tokens", "onnx int8", "torch float32"):
        assert part in out
    assert out.count("model is ") == 4
    assert "x as fast as onnx-int8 (quartiles" in out
    assert "x as fast as tiny-bert (quartiles" in out
    data = json.loads((tmp_path / "bench.json").read_text())
    assert list(data["folders"]) == ["model", "onnx-int8", "tiny-bert"]
    assert data["folders"]["onnx-int8"]["runtime"] == "onnx"
    assert data["speedup_of"] == "model"
    assert [(s["batch"], s["sequence"]) for s in data["shapes"]] == [(1, 8), (2, 8)]
    assert set(data["shapes"][0]["speedups"]) == {"onnx-int8", "tiny-bert"}
    assert data["hardware"]["processor"]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_json_on_standard_output_is_all_there_is(dsee_command, results):
    _, out, _ = dsee_command("bench", results / "onnx-int8", "--against", results / "onnx-fp32", *FEW, "--json", "-")
    assert set(json.loads(out)["folders"]) == {"onnx-int8", "onnx-fp32"}


def test_folders_of_one_name_get_longer_names(dsee_command, results, copy):
    _, out, err = dsee_command("bench", results, "--against", copy / "out", *FEW, "--json", "-")
    names = list(json.loads(out)["folders"])
    assert [name.split("/")[-2:] for name in names] == [["out", "model"]] * 2
    assert len(set(names)) == 2, err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{results}", "--against", "{results}/model"], "is named twice"),
        (["{results}", "--against", "nowhere"], "nowhere: there is no such folder"),
        (["{results}", "--against", "{results}/onnx-int8", "--sequence", "900"], "sequence=900 is longer than"),
        (["{results}", "--against", "{results}/onnx-int8", "--plot", "x.txt"], "has to end in .png, .svg, .pdf"),
        (["{results}", "--against", "{results}/onnx-int8", "--json", "{tmp}/no/x.json"], "no: there is no such folder"),
        (["{results}", "--against", "{results}/onnx-int8", "--rounds", "0"], "greater than or equal to 1"),
        (["{results}"], "--against"),
    ],
)
def test_wrong_input_exits_with_2(dsee_command, results, tmp_path, arguments, expected):
    code, out, err = dsee_command("bench", *(a.format(results=results, tmp=tmp_path) for a in arguments))
    assert (code, out) == (2, "")
    assert expected in err
    assert "Traceback" not in err


def test_a_folder_without_a_model_is_refused(dsee_command, results, tmp_path):
    code, _, err = dsee_command("bench", results, "--against", tmp_path)
    assert code == 1
    assert "is not a dsee artifact and holds none" in err


def test_a_plot_without_matplotlib_is_refused_before_anything_is_timed(dsee_command, results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = dsee_command(
        "bench", results, "--against", results / "onnx-int8", "--plot", tmp_path / "bench.png"
    )
    assert (code, out) == (1, "")
    assert "pip install 'dsee[plot]'" in err
