"""``dsee run``: all stages in order, going on after the last one that an earlier run finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dsee.errors import InputError
from dsee.measure.hardware import hardware
from dsee.processes import agree, before_the_others, count, first, leads, together
from dsee.tasks.bad_rows import in_short
from dsee.training import chain
from dsee.training.answers import questions, submit
from dsee.training.measuring import measure
from dsee.training.progress import Bar, Progress, Silent
from dsee.training.recipe import PruneSpec, Recipe
from dsee.training.rules import at_once
from dsee.training.same import seen_by_all, starting_point
from dsee.training.setting import Setting
from dsee.training.sharded import check_sharding
from dsee.training.shares import check_batches
from dsee.training.stage import StageRecord, fingerprint, half_written

#: Keys of the recipe that decide what tuning finds.
TUNED_BY = {
    *("model", "metric", "method", "update", "tune", "gates"),
    *("base_dropout", "attention_dropout", "group_by_length", "cache_prefix"),
}


@dataclass(frozen=True)
class RunResult:
    """What a run leaves.

    Attributes:
        output: the folder.
        stages: what each stage found, by name.
        variants: row name -> folder, as measured.
        sizes: sentences of each part, by name.
        hardware: what it was measured on.
        metrics: the figures of the task, the one that chose the epochs first.
        notes: what there is to say of the data: rows left out, texts cut.
        predictions: files for GLUE's server.
    """

    output: Path
    stages: dict[str, dict[str, Any]]
    variants: dict[str, Path]
    sizes: dict[str, int]
    hardware: dict[str, Any]
    metrics: tuple[str, ...] = ("accuracy",)
    notes: list[str] = field(default_factory=list)
    predictions: list[Path] = field(default_factory=list)


class _Runner:
    """Runs stages one after the other, each under a fingerprint of all that came before it."""

    def __init__(self, setting: Setting, progress: Progress, fresh: bool) -> None:
        self.setting, self.progress, self.fresh = setting, progress, fresh
        recipe = setting.recipe
        self.key = fingerprint(recipe.task, recipe.data.model_dump(), recipe.seed, recipe.max_length, setting.inputs)
        if recipe.writes:
            # how texts are written and scored comes later, in a stage of its own
            learned = recipe.generation.model_dump(exclude={"decoding", "metrics"})
            self.key = fingerprint(self.key, learned, recipe.gguf_file)
        self.keys: dict[str, str] = {}
        self.results: dict[str, dict[str, Any]] = {}

    def stage(
        self,
        name: str,
        depends: Any,
        artifacts: list[Path],
        total: Callable[[], int],
        work: Callable[[Bar], dict[str, Any]],
        *,
        after: str | None = None,
        by_all: bool = False,
    ) -> None:
        # what follows from an earlier stage alone does not change with those between, nor do later ones with it
        key = fingerprint(self.keys[after] if after else self.key, name, depends)
        if after is None:
            self.key = key
        self.keys[name] = key
        kept = StageRecord(self.setting.output, name, key)
        found = None if self.fresh else first(lambda: kept.results(artifacts))
        if kept.spoilt:
            self.progress.say(f"{name}: {kept.spoilt} Not used: the stage is run again.")
        if found is not None:
            self.progress.skipped(name)
        else:
            with self.progress.stage(name, total()) as bar:
                found = work(bar) if by_all else first(lambda: work(bar))
            first(lambda: kept.write(found))
        seen_by_all(artifacts)
        self.results[name] = found


def run(
    recipe: Recipe,
    *,
    base: Path,
    output: Path | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
) -> RunResult:
    """Carry out a recipe.

    Args:
        recipe: the recipe.
        base: folder its relative paths start from.
        output: folder for what comes out; the recipe's by default.
        progress: shows how far it is.
        fresh: run all stages again, finished or not.

    Returns:
        What came out. The folder then holds ``model/`` (artifact), ``onnx-fp32/``, ``onnx-int8/``, ``stages/``, and
        for a task of GLUE ``glue/``.

    Under torchrun all processes call this; the first one writes and shows, and all return the same.

    Raises:
        DseeError: one clear reason; finished stages stay finished.
    """
    target = (output or base / recipe.output).resolve()
    setting = Setting(recipe, base, target)
    with together():
        progress, processes = (progress if leads() else None) or Silent(), count()
        first(lambda: _check_several(recipe, processes))
        # the first one fills the caches of the data
        for note in in_short(before_the_others(lambda: _look_ahead(setting))):
            progress.say(note)
        runner = _Runner(setting, progress, fresh)
        agree(
            "what the run starts from", starting_point(setting), "Give all processes the same recipe, data and model."
        )
        for left in first(lambda: _claim(target)):
            progress.say(f"{left} is half-written, by a run that was broken off. Not used: its stage is run again.")
        return _all_stages(runner)


def _check_several(recipe: Recipe, processes: int) -> None:
    check_batches(recipe, processes)
    if processes > 1 or recipe.fsdp:
        check_sharding(recipe)


def _look_ahead(setting: Setting) -> list[str]:
    chain.preflight(setting)
    return setting.notes


def _all_stages(runner: _Runner) -> RunResult:
    setting, target = runner.setting, runner.setting.output
    recipe, stages, metrics = setting.recipe, target / "stages", setting.metrics
    tuned, model = stages / "tuned", target / "model"

    runner.stage(
        "tune",
        recipe.model_dump(include=TUNED_BY),
        [tuned],
        lambda: chain.tune_total(setting),
        lambda bar: chain.tune(setting, bar, tuned),
        by_all=True,
    )
    variants, last = {"dense": tuned}, tuned
    if recipe.prune:
        last = _prune_and_recover(runner, recipe.prune, tuned)
        found = {"pruned": stages / "pruned"} if "prune" in runner.results else {}
        variants |= found | {"recovered": model}
    runner.stage(
        "merge", None, [model], partial(questions, setting), lambda bar: chain.merge(setting, bar, last, model)
    )
    exports: dict[str, Path] = {name: target / f"onnx-{name}" for name in dict.fromkeys(recipe.export.onnx)}
    if exports:
        runner.stage(
            "export",
            list(exports),
            list(exports.values()),
            lambda: len(exports) * questions(setting),
            lambda bar: chain.export(setting, bar, model, exports),
        )
        variants |= {f"ONNX {precision}": folder for precision, folder in exports.items()}
    if recipe.writes and recipe.task != "language-modelling":
        _write(runner, variants)
    shape = recipe.measure.model_dump()
    runner.stage("measure", [shape, hardware()], [], lambda: len(variants), lambda bar: measure(setting, bar, variants))
    predictions = _submit(runner, model, target)
    facts: Any = {"metrics": metrics, "notes": _notes(runner), "predictions": predictions}
    return RunResult(target, runner.results, variants, setting.sizes, hardware(), **facts)


def _notes(runner: _Runner) -> list[str]:
    """What there is to say of the data; of a stream, what the stages found that read it."""
    found = [note for result in runner.results.values() for note in result.get("stream", [])]
    return list(dict.fromkeys([*runner.setting.notes, *found]))


def _submit(runner: _Runner, model: Path, target: Path) -> list[Path]:
    """Answer the parts without labels, if the task has some; return the files."""
    wanted = {} if runner.setting.writing else runner.setting.data.unlabelled
    files = {name: target / "glue" / f"{name}.tsv" for name in wanted}
    if files:
        runner.stage(
            "submit",
            list(files),
            list(files.values()),
            lambda: sum(len(part) for part in wanted.values()),
            lambda bar: submit(runner.setting, bar, model, files),
        )
    return list(files.values())


def _prune_and_recover(runner: _Runner, spec: PruneSpec, tuned: Path) -> Path:
    """Run these two stages, or the second alone if all there is to prune has a schedule; return what comes out."""
    setting, source = runner.setting, tuned
    pruned, recovered = tuned.with_name("pruned"), tuned.with_name("recovered")
    if at_once(setting):
        runner.stage(
            "prune",
            spec.model_dump(),
            [pruned],
            lambda: chain.prune_total(setting),
            lambda bar: chain.prune(setting, bar, tuned, pruned),
        )
        source = pruned
    runner.stage(
        "recover",
        # with a schedule that is when pruning happens
        [setting.recipe.recover.model_dump(), spec.model_dump()],
        [recovered],
        lambda: chain.recover_total(setting),
        lambda bar: chain.recover(setting, bar, source, recovered, tuned),
        by_all=True,
    )
    return recovered


def _write(runner: _Runner, variants: dict[str, Path]) -> None:
    """Let every variant write for the test part; a stage each, since with beams that takes long."""
    setting, writing = runner.setting, runner.setting.writing
    assert writing is not None, "the recipe writes"  # noqa: S101 - for the type checker
    spec = setting.recipe.generation
    made_by = {"dense": "tune", "pruned": "prune", "recovered": "merge"}
    for name, folder in variants.items():
        texts = {each: setting.output / "stages" / f"texts-{each}.jsonl" for each in variants}
        # an export is compared with the model it was made from
        like = texts["recovered" if "recovered" in variants else "dense"] if name.startswith("ONNX") else None
        runner.stage(
            f"write-{name}",
            [spec.decoding.model_dump(), spec.metrics],
            [],
            lambda: writing.prompts,
            partial(writing.write, folder=folder, texts=texts[name], like=like),
            after=made_by.get(name, "export"),
            by_all=True,
        )


def _claim(target: Path) -> list[Path]:
    """Refuse a folder that holds something else, before hours of work end in it; return what is half-written there."""
    if target.is_file():
        raise InputError(f"output: {target} is a file. Choose a folder.")
    ours = {
        "stages",
        "model",
        "glue",
        "logs",
        "onnx-fp32",
        "onnx-int8",
        "report.json",
        "report.md",
        "report.png",
        "recipe.yaml",
    }
    names = {entry.name for entry in target.iterdir() if not entry.name.startswith(".")} if target.is_dir() else set()
    if names and "stages" not in names and not names <= ours:
        raise InputError(f"output: {target} holds other things ({min(names - ours)}, ...). Choose an empty folder.")
    target.mkdir(parents=True, exist_ok=True)
    return half_written(target)
