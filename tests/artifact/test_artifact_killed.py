"""Killed at any moment, or on a full disk, a save leaves the old artifact or the new one, never something between."""

import json
from pathlib import Path

import pytest
from artifact_tools import run_python

SCRIPT = Path(__file__).with_name("save_and_die.py")


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return json.loads(run_python(str(SCRIPT), str(tmp_path_factory.mktemp("killed"))).splitlines()[-1])


def test_every_step_of_a_save_was_killed_once(trials):
    ends = [trial["ended"] for trial in trials["steps"]]
    assert ends[-1] == "done"
    assert set(ends[:-1]) == {"signal 9"}
    # writing, checking, two renames, clearing away: fewer would mean that the trials miss the save
    assert len(ends) > 10


def test_killed_at_any_step_the_old_or_the_new_model_loads(trials):
    assert {trial["model"] for trial in trials["steps"]} == {"old", "new"}


def test_killed_at_a_random_moment_the_old_or_the_new_model_loads(trials):
    assert trials["random"]
    assert {trial["model"] for trial in trials["random"]} <= {"old", "new"}


@pytest.mark.parametrize("kind", ["steps", "random"])
def test_own_files_survive_a_kill(trials, kind):
    lost = [number for number, trial in enumerate(trials[kind]) if not trial["notes"]]
    assert lost == []


@pytest.mark.parametrize("kind", ["steps", "random", "full"])
def test_the_next_save_works_and_leaves_nothing_beside(trials, kind):
    assert {trial["again"] for trial in trials[kind]} == {"saved"}
    assert [trial["beside"] for trial in trials[kind] if trial["beside"]] == []


def test_a_real_full_disk_is_said_to_be_full(trials):
    for trial in trials["full"]:
        assert trial["said"].startswith("ArtifactError"), trial
        assert "no space is left" in trial["said"]


def test_a_real_full_disk_leaves_the_old_artifact_and_nothing_beside(trials):
    assert [(trial["model"], trial["notes"], trial["left"]) for trial in trials["full"]] == [("old", True, [])] * 3
