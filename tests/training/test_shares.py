"""How batches and work are shared out among processes, without starting any."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import batch, tiny_bert
from dsee import processes
from dsee.errors import EchoError, InputError, ProcessError
from dsee.processes import agree, before_the_others, first, spread
from dsee.training import shares
from dsee.training.recipe_file import parse_recipe
from dsee.training.sharded import check_sharding
from dsee.training.shares import Shares, check_batches, counted, leaves_unused

QUICK = settings(deadline=None, database=None, derandomize=True, max_examples=40)
SMALL = {"model": "m", "data": {"train": "t.csv"}}


def recipe(**changes):
    return parse_recipe(SMALL | changes, "test")


class Order:
    """A loader's batches, in order."""

    def __init__(self, rows, size):
        self.batch_sampler = [list(range(rows))[at : at + size] for at in range(0, rows, size)]

    def __len__(self):
        return len(self.batch_sampler)


@QUICK
@given(rows=st.integers(1, 40), each=st.integers(1, 4), several=st.integers(1, 4), stream=st.booleans())
def test_every_row_of_every_batch_is_somebodys_once(rows, each, several, stream):
    data, size = [{"row": i} for i in range(rows)], each * several
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares, "count", lambda: several)
        for number in range(several):
            patch.setattr(shares, "index", lambda number=number: number)
            found.append(list(Shares(data, size, None if stream else Order(rows, size))))
    batches = list(zip(*found, strict=True))
    assert len(batches) == -(-rows // size)
    seen = []
    for shared_out in batches:
        mine = [[row["row"] for row in part] for part, stand_in in shared_out if not stand_in]
        assert all(part for part, _ in shared_out)
        assert max(map(len, mine)) - min(map(len, mine)) <= 1
        seen.append(sorted(row for part in mine for row in part))
    assert seen == [list(range(at, min(at + size, rows))) for at in range(0, rows, size)]


def test_a_stream_has_no_length():
    assert len(Shares([], 4, Order(10, 4))) == 3
    with pytest.raises(TypeError):
        len(Shares([], 4, None))


def test_the_terms_of_a_loss():
    assert counted(torch.tensor([1, 0, 1])) == 3
    assert counted(torch.tensor([[1.0, 0.0], [0.0, 0.0]])) == 2
    # the first token of each row is nobody's next one
    assert counted(torch.tensor([[5, 6, -100], [-100, 7, 8], [-100, -100, -100]])) == 3


def test_a_part_without_a_gradient_is_found():
    model = tiny_bert()
    rows = batch(labels=True)
    assert not leaves_unused(model, rows)
    model.spare = torch.nn.Linear(2, 2)
    assert leaves_unused(model, rows)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_batch_is_that_of_all_processes():
    check_batches(recipe(tune={"batch_size": 12}), 3)
    check_batches(recipe(tune={"batch_size": 7}), 1)
    with pytest.raises(InputError, match=r"tune.batch_size=14 .* among 4 processes.* such as 12"):
        check_batches(recipe(tune={"batch_size": 14}), 4)
    with pytest.raises(InputError, match=r"tune.batch_size=2 .* such as 4"):
        check_batches(recipe(tune={"batch_size": 2}), 4)
    # nothing is recovered without pruning
    check_batches(recipe(recover={"batch_size": 7}), 2)
    with pytest.raises(InputError, match=r"recover.batch_size=7"):
        check_batches(recipe(prune={"heads": 1}, recover={"batch_size": 7}), 2)
    hidden = recipe(prune={"heads": 1}, recover={"distill": {"hidden": 1.0}})
    check_batches(hidden, 1)
    with pytest.raises(InputError, match=r"recover.distill.hidden"):
        check_batches(hidden, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "full"}, "method: full"),
        ({"gates": True}, "gates"),
        ({"cache_prefix": True}, "cache_prefix"),
        ({"prune": {"weights": 0.5, "schedule": "cubic"}}, "schedule"),
    ],
)
def test_what_a_model_in_pieces_cannot_do_is_refused_by_name(changes, said):
    check_sharding(recipe(**changes))
    with pytest.raises(InputError, match=f"fsdp: .*{said}"):
        check_sharding(recipe(fsdp=True, **changes))


def test_accelerates_own_sharding_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"fsdp: true in the recipe"):
        check_sharding(recipe())


def test_alone_everything_is_the_plain_thing():
    assert (processes.count(), processes.index(), processes.leads()) == (1, 0, True)
    assert first(lambda: 3) == before_the_others(lambda: 3) == 3
    agree("this", {"a": 1}, "do nothing")
    finished = []
    assert spread([3, 1, 2], lambda job: job * job, finished.extend) == [9, 1, 4]
    assert finished == [3, 1, 2]
    assert spread([], lambda job: job) == []


@QUICK
@given(jobs=st.integers(1, 20), several=st.integers(2, 5))
def test_work_is_shared_out_evenly_and_comes_back_in_order(jobs, several):
    done, told = [], []

    def group(number):
        return processes._Group(index=number, count=several)

    with pytest.MonkeyPatch.context() as patch:
        for number in range(several):
            mine = []
            patch.setattr(processes, "_group", group(number))
            patch.setattr(processes, "_answers", lambda value, mine=mine: [mine.append(value)] * 0 or [value] * several)
            spread(list(range(jobs)), lambda job: job * 10, told.extend if number == 0 else None)
            done.append(mine[0])
        # as many each, and everything once among them
        assert len({len(part) for part in done}) == 1
        patch.setattr(processes, "_group", group(0))
        patch.setattr(processes, "_answers", lambda value: done)
        assert spread(list(range(jobs)), lambda job: job * 10) == [10 * job for job in range(jobs)]
    assert told == list(range(jobs))


@pytest.mark.parametrize("number", [0, 1])
def test_processes_that_differ_end_with_one_error(monkeypatch, number):
    monkeypatch.setattr(processes, "_group", processes._Group(index=number, count=3))
    values = [{"x": 1, "y": 2}, {"x": 1, "y": 2}, {"x": 1, "y": 3}]
    monkeypatch.setattr(processes, "_answers", lambda value: values)
    with pytest.raises(ProcessError if number == 0 else EchoError) as caught:
        agree("the model", values[number], "Look after it.")
    if number == 0:
        said = "the model: not the same on process 0 and on 2 of 3 (first of all in y). Look after it."
        assert str(caught.value) == said


def test_verbs_for_one_process_refuse_several(dsee_command, monkeypatch, tmp_path):
    import os

    monkeypatch.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    code, _, errors = dsee_command("inspect", tmp_path)
    assert code == 2
    assert "dsee inspect works in one process" in errors
    monkeypatch.setenv("RANK", "1")
    assert dsee_command("inspect", tmp_path) == (2, "", "")
    monkeypatch.delenv("RANK")
    assert processes.launched() == 1


@pytest.mark.parametrize("rank", ["0", "1"])
def test_processes_that_nobody_can_find_are_told_of_torchrun(monkeypatch, rank):
    for name, value in {"WORLD_SIZE": "2", "RANK": rank, "ACCELERATE_USE_CPU": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError if rank == "0" else EchoError) as caught, processes.together():
        pass
    assert ("Start them with torchrun" in str(caught.value)) == (rank == "0")
    assert processes.count() == 1


def test_the_recipe_says_whether_the_model_is_in_pieces():
    assert not recipe().fsdp
    assert json.loads(recipe(fsdp=True).model_dump_json())["fsdp"] is True
