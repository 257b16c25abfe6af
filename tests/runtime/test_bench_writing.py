"""Timing models that write: the first token, and those after it, by torch and by ONNX."""

import json

import numpy as np
import pytest
import torch
from write_golden_onnx import GOLDEN

from conftest import tiny_bert
from dsee.errors import InputError
from dsee.measure.latency import Latency
from dsee.report.bench import bench_cells, bench_data, bench_header
from dsee.runtime import OnnxModel
from dsee.runtime.bench import Timed, bench
from dsee.runtime.opened import open_model
from writing_tools import gpt2, llama

CACHED, AGAIN = (GOLDEN / "0.1.0" / name for name in ("gpt2-cached", "gpt2-reads-all-again"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("writing")
    for name, make in (("gpt2", gpt2), ("llama", llama)):
        # an end that is likely must not end what is timed
        make().save_pretrained(root / name)
    tiny_bert().save_pretrained(root / "bert")
    return {path.name: path for path in root.iterdir()}


def test_the_first_token_and_all_of_them_are_timed_turn_by_turn(folders, monkeypatch):
    written = []
    real = OnnxModel.go_on
    monkeypatch.setattr(OnnxModel, "go_on", lambda self, inputs, new: written.append(new) or real(self, inputs, new))
    three = {"cached": CACHED, "again": AGAIN, "gpt2": folders["gpt2"]}
    found = bench(three, shapes=[(2, 6)], runs=2, warmup=0, memory=False, new_tokens=5)
    timed = found.shapes[0]
    # tried once each, then in two rounds
    assert written == [5, 5, 1, 1] + [5, 5, 1, 1] * 2
    assert set(timed.times) == set(timed.first) == set(three)
    assert set(timed.speedups) == {"again", "gpt2"}
    assert timed.new_tokens == 5
    data = bench_data(found)["shapes"][0]
    assert data["new_tokens"] == 5
    assert set(data["first_token"]) == set(data["tokens_per_s"]) == set(three)
    rows = bench_cells(found, timed)
    assert {len(row) for row in rows} == {len(bench_header(timed))}
    assert "new tokens/s" in bench_header(timed)


def test_tokens_a_second_leave_the_first_one_out():
    def latency(ms):
        return Latency(**dict.fromkeys(Latency.__dataclass_fields__, ms))

    timed = Timed(2, 6, {"a": latency(50.0)}, {}, {}, 5, {"a": latency(10.0)})
    assert timed.tokens_per_second("a") == pytest.approx(1e3 * 2 * 4 / 40)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_torch_writes_as_many_tokens_as_are_asked_for(folders, name, monkeypatch):
    model = open_model(folders[name])
    # every token ends the text, and still all are written
    model.model.generation_config.eos_token_id = list(range(339))
    seen = []
    real = model.model.generate
    monkeypatch.setattr(model.model, "generate", lambda **given: seen.append(real(**given)))
    for new in (1, 4):
        model.go_on(model.sample(2, 5), new)
        assert seen[-1].shape == (2, 5 + new)
    assert torch.equal(seen[0][:, :5], model.sample(2, 5)["input_ids"])


def test_without_it_one_pass_is_timed(folders):
    two = {"gpt2": folders["gpt2"], "again": AGAIN}
    found = bench(two, shapes=[(1, 4)], runs=1, warmup=0, memory=False)
    assert (found.shapes[0].new_tokens, found.shapes[0].first) == (0, {})
    assert "first_token" not in bench_data(found)["shapes"][0]


@pytest.mark.parametrize(
    ("names", "new", "message"),
    [
        (("gpt2", "llama"), 1, "has to be at least 2"),
        (("gpt2", "llama"), -1, "has to be at least 2"),
        (("gpt2", "bert"), 4, "holds a model that writes nothing"),
        (("gpt2", "cached"), 40, "more than the 24 positions"),
    ],
)
def test_what_makes_no_sense_is_refused(folders, names, new, message):
    known = folders | {"cached": CACHED}
    with pytest.raises(InputError, match=message):
        bench({name: known[name] for name in names}, shapes=[(1, 4)], memory=False, new_tokens=new)


def test_the_command_shows_first_token_and_rate(dsee_command, folders):
    few = ("--rounds", "1", "--warmup", "0", "--sequence", "6", "--no-memory", "--new-tokens", "4")
    code, out, err = dsee_command("bench", CACHED, "--against", folders["gpt2"], *few)
    assert code == 0, err
    for part in ("1 x 6 tokens and 4 new ones", "first token ms", "new tokens/s", "x as fast as gpt2"):
        assert part in out
    _, out, _ = dsee_command("bench", CACHED, "--against", AGAIN, *few, "--json", "-")
    rates = json.loads(out)["shapes"][0]["tokens_per_s"]
    assert np.isfinite(list(rates.values())).all()
