"""The stages themselves. Each takes the setting and a bar, writes its artifacts, and returns plain data."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsee.architectures import layers
from dsee.artifact.manifest import read_manifest
from dsee.errors import InputError
from dsee.measure import flops, parameters
from dsee.modes import evaluating
from dsee.processes import agree, first
from dsee.pruning import (
    Budget,
    Gradual,
    LayerPlan,
    Rule,
    get_mask,
    masked_linears,
    plan_for,
)
from dsee.pruning.budget import choose
from dsee.pruning.gates import has_gates
from dsee.pruning.mask_order import shapes_after
from dsee.pruning.mask_plan import check_mask_rule
from dsee.runtime import OnnxModel
from dsee.steps import record
from dsee.tasks.encode import batches
from dsee.tasks.metrics import METRICS, Figures
from dsee.tasks.stream import Streamed
from dsee.training.answers import calibration_rows, figures, questions, train_size
from dsee.training.distillation import Distillation
from dsee.training.fit import fit, set_attention_dropout, set_dropout, steps_of, torch_logits
from dsee.training.gates import GateCallback
from dsee.training.methods import check_method, holders, merged, prepared, settled, train_only, with_smallest_update
from dsee.training.prefix_cache import frozen_prefix
from dsee.training.progress import Bar
from dsee.training.recipe import RecoverSpec, TrainSpec
from dsee.training.reports import Reports
from dsee.training.rules import at_once, check_recipe, mask_rules_of, rules_of, schedule_of
from dsee.training.same import digests
from dsee.training.setting import Setting

CALIBRATION_BATCH = 32
#: How many sentences of the training part choose a support by gradients.
SUPPORT_SENTENCES = 512
SEARCHED = (
    "Supports are searched by each process on its own: use machines and libraries of one kind, or support: random."
)
DRIFTED = "This should not be: please report it, with the recipe and how the processes were started."


def _fit_and_test(
    setting: Setting,
    model: Any,
    step: str,
    spec: TrainSpec,
    seed: int,
    bar: Bar,
    *,
    teacher: Any = None,
    schedule: Gradual | None = None,
) -> tuple[Any, dict[str, Any]]:
    _set_dropouts(setting, model)
    recipe, parts = setting.recipe, setting.parts
    bar.note(f"{parameters(model).trainable_share:.2%} trainable")
    distillation = Distillation(**spec.distill.model_dump()) if isinstance(spec, RecoverSpec) and spec.distill else None
    gating = [GateCallback(recipe.gates.strength)] if recipe.gates and has_gates(model) else []
    keeper = fit(
        model,
        parts["train"],
        parts["validation"],
        setting.tokenizer,
        spec,
        seed=seed,
        bar=bar,
        group_by_length=recipe.group_by_length,
        cache_prefix=recipe.cache_prefix,
        teacher=teacher,
        distillation=distillation,
        schedule=schedule,
        callbacks=[*gating, *holders(model)],
        metric=setting.metrics[0],
        reports=Reports(tuple(recipe.report_to), setting.output / "logs" / step, f"{setting.output.name}-{step}"),
        objective=setting.writing.objective() if setting.writing else None,
        fsdp=recipe.fsdp,
    )
    facts: dict[str, Any] = {
        "epochs": len(keeper.log),
        "learning_rate": spec.learning_rate,
        "batch_size": spec.batch_size,
        "seed": seed,
    }
    if distillation:
        facts["distillation"] = distillation.facts()
    if recipe.method != "dsee":
        facts["method"] = recipe.method
    agree(f"the model after {step}", digests(model), DRIFTED)
    record(model, step, **facts)
    model = settled(recipe, model)
    train = parts["train"]
    read = {"stream": train.notes} if isinstance(train, Streamed) else {}
    return model, {"validation": keeper.log, **_tested(setting, model, bar), **read}


def _tested(setting: Setting, model: Any, bar: Bar) -> dict[str, Any]:
    """Metrics on the test part, and counts."""
    with evaluating(model):
        metrics = figures(setting, torch_logits(model), bar.advance)
    counts, shape = parameters(model), setting.recipe.measure
    operations = flops(model, shape.batch, shape.sequence)
    first = METRICS[setting.metrics[0]]
    bar.note(f"test {first.title} {first.shown(metrics[setting.metrics[0]])}")
    return {
        "test": metrics,
        "trainable": counts.trainable,
        "parameters": counts.total,
        # what runs once the update is merged, as it is before anything is deployed or timed
        "flops": operations.total - operations.update,
        "encoder_flops": operations.encoder - operations.update,
        **_zeros(model),
    }


def _zeros(model: Any) -> dict[str, Any]:
    """Share of zeros in the masked matrices, if there are any."""
    masks = [mask for linear in masked_linears(model).values() if (mask := get_mask(linear)) is not None]
    weights = sum(mask.numel() for mask in masks)
    return {"zeros": 1 - sum(int(mask.sum()) for mask in masks) / weights} if weights else {}


def _set_dropouts(setting: Setting, model: Any) -> None:
    recipe = setting.recipe
    if recipe.base_dropout is not None:
        set_dropout(model, recipe.base_dropout)
    if recipe.attention_dropout is not None:
        set_attention_dropout(model, recipe.attention_dropout)


def tune_total(setting: Setting) -> int:
    """Steps of the bar of :func:`tune`."""
    return steps_of(setting.recipe.tune, train_size(setting)) + questions(setting)


def tune(setting: Setting, bar: Bar, target: Path) -> dict[str, Any]:
    """Put an update on the pre-trained model, or what the recipe's method has instead, train it, save both."""
    from transformers import set_seed

    recipe = setting.recipe
    set_seed(recipe.seed)

    def calibration() -> Any:
        rows = batches(calibration_rows(setting, SUPPORT_SENTENCES), setting.collate, CALIBRATION_BATCH)
        return [batch for _, batch in rows]

    model = prepared(recipe, setting.new_model(), calibration)
    agree("the model before tuning", digests(model), SEARCHED)
    model, results = _fit_and_test(setting, model, "tune", recipe.tune, recipe.seed, bar)
    bar.note("saving")
    first(lambda: _save(setting, model, target))
    return results


def _planned(empty: Any, rule: Rule | Budget) -> list[LayerPlan]:
    """What a rule would remove if it ranked by noise: any score will do to see whether it can be met."""
    if isinstance(rule, Rule):
        return plan_for(empty, rule if rule.explicit is not None else replace(rule, score="random"))
    if rule.kind == "latency":
        # to be measured on the tuned model
        return [LayerPlan() for _ in layers(empty)]
    return choose(empty, replace(rule, score="random", steps=1)).plans


def preflight(setting: Setting) -> None:
    """Find what would fail after hours of tuning before it starts: no map, no such score, more heads than there are.

    Raises:
        InputError: the first such thing.
    """
    check_recipe(setting.recipe)
    empty = setting.empty_model()
    layers(empty)
    check_method(setting.recipe, setting.empty_model())
    if setting.writing:
        setting.writing.check(empty)
    # any score will do to see whether the amount can be met
    plans = [_planned(empty, rule) for rule in rules_of(setting)]
    shapes = shapes_after(empty, plans)
    for mask_rule in mask_rules_of(setting):
        check_mask_rule(empty, mask_rule, shapes)
    schedule = schedule_of(setting)
    if schedule:
        schedule.span(steps_of(setting.recipe.recover, train_size(setting)))
    if setting.recipe.cache_prefix:
        _check_prefix(setting, schedule)


def _check_prefix(setting: Setting, schedule: Gradual | None) -> None:
    if schedule or setting.recipe.gates:
        raise InputError("cache_prefix: a schedule or gates change the lower layers too. Set cache_prefix: false.")
    model = with_smallest_update(setting.recipe, setting.empty_model())
    _set_dropouts(setting, model)
    frozen_prefix(model)


def prune_total(setting: Setting) -> int:
    """Steps of the bar of :func:`prune`."""
    return _calibration_batches(setting) + questions(setting)


def _calibration_batches(setting: Setting) -> int:
    spec = setting.recipe.prune
    size = len(calibration_rows(setting, spec.calibration)) if spec else 0
    return -(-size // CALIBRATION_BATCH)


def prune(setting: Setting, bar: Bar, source: Path, target: Path) -> dict[str, Any]:
    """Remove heads and neurons and mask weights by the recipe's rules."""
    import dsee

    spec = setting.recipe.prune
    if spec is None:
        raise InputError("prune: the recipe has no prune section.")
    model = dsee.load(source, trainable=True)

    def calibration() -> Any:
        rows = calibration_rows(setting, spec.calibration)
        for _, batch in batches(rows, setting.collate, CALIBRATION_BATCH):
            bar.advance()
            yield batch

    report = dsee.prune(model, *at_once(setting), calibration=calibration())
    results = _tested(setting, model, bar)
    dsee.save(model, target, tokenizer=setting.tokenizer)
    return results | {"before": report.before, "after": report.after}


def recover_total(setting: Setting) -> int:
    """Steps of the bar of :func:`recover`."""
    spec, train = setting.recipe.recover, train_size(setting)
    answers = train if spec.distill and not spec.distill.hidden and not setting.writing else 0
    return steps_of(spec, train) + answers + questions(setting)


def recover(setting: Setting, bar: Bar, source: Path, target: Path, tuned: Path) -> dict[str, Any]:
    """Go on tuning the update of the pruned model, with a fresh optimizer; the tuned model teaches it if asked to."""
    import dsee

    spec = setting.recipe.recover
    model = dsee.load(source, trainable=True)
    train_only(model, setting.recipe.method)
    teacher = dsee.load(tuned) if spec.distill else None
    limit = setting.recipe.prune.calibration if setting.recipe.prune else 0

    def calibration() -> Any:
        """Afresh for every choice of the schedule."""
        return [batch for _, batch in batches(calibration_rows(setting, limit), setting.collate, CALIBRATION_BATCH)]

    schedule = schedule_of(setting, calibration)
    seed = setting.recipe.seed + 1
    model, results = _fit_and_test(setting, model, "recover", spec, seed, bar, teacher=teacher, schedule=schedule)
    first(lambda: _save(setting, model, target))
    return results


def _save(setting: Setting, model: Any, target: Path) -> None:
    import dsee

    dsee.save(model, target, tokenizer=setting.tokenizer)


def merge(setting: Setting, bar: Bar, source: Path, target: Path) -> dict[str, Any]:
    """Merge the update and save the plain model.

    Its accuracy has to be the unmerged one's, except where masks drop the part of the update that lies on zeros.
    """
    import dsee

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = merged(dsee.load(source))
    said = []
    for warning in caught:
        text = str(warning.message)
        if text.startswith("merge: "):
            said.append(text)
            bar.note(text)
        else:
            warnings.warn(warning.message, stacklevel=2)
    results = _tested(setting, model, bar) | ({"said": said} if said else {})
    facts = {"test": results["test"]} | (setting.writing.facts() if setting.writing else {})
    dsee.save(model, target, tokenizer=setting.tokenizer, facts=facts)
    return results


def export(setting: Setting, bar: Bar, source: Path, targets: dict[str, Path]) -> dict[str, Any]:
    """Export to ONNX and measure each export on the test part; its card shows that beside the model's own figures."""
    import dsee

    model = dsee.load(source)
    results: dict[str, Any] = {}

    def evaluate(exported: OnnxModel) -> Figures:
        def logits(batch: Any) -> Any:
            return exported.run({key: tensor.numpy() for key, tensor in batch.items()})

        found = figures(setting, logits, bar.advance)
        results[exported.precision] = {"test": found}
        return {name: value for name, value in found.items() if name != "tokens"}

    for precision, target in targets.items():
        bar.note(f"ONNX {precision}")
        quantize: Any = "int8" if precision == "int8" else None
        dsee.export_onnx(
            model,
            target,
            tokenizer=setting.tokenizer,
            quantize=quantize,
            max_length=setting.recipe.max_length,
            evaluate=evaluate,
            original=read_manifest(source).facts.get("test"),
            facts=_asked(setting),
        )
    return results


def _asked(setting: Setting) -> dict[str, Any]:
    """What an export has to say of how it is asked; the token that ended texts in training ends them there too."""
    facts = setting.writing.facts() if setting.writing else {}
    return {name: said | {"end": [int(setting.tokenizer.eos_token_id)]} for name, said in facts.items()}
