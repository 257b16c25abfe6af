"""The cells of the pruning grid, in the order in which they run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product


@dataclass(frozen=True)
class PruneCell:
    """Prune a tuned model and recover it: everything that decides the outcome.

    Attributes:
        task: name of the task.
        start: which tuned model, a key of grid_prune.STARTS.
        cut: "" or what is cut: "25/40" (% of heads / % of neurons, in each layer) or "flops 0.5" (a budget over all).
        mask: "", "weights", "blocks" (4x1), "4x4" (blocks, also measured as int8) or "2:4".
        ratio: share of zeros of the mask.
        score: what ranks.
        steps: cut in so many steps, scored afresh each time.
        distill: whether the unpruned model teaches.
        temperature: of teacher and student.
        alpha: the teacher's share of the loss.
        gradual: "" masks at once, before recovering; "cubic" or "linear" while recovering.
        regrow: with ``gradual``, whether masked weights may return.
        epochs: of recovering.
        lr: learning rate of recovering.
        seed: of the tuned model and of everything after.
        masked: keep the update to the masks while recovering, so that the masked merge drops nothing of it.
    """

    task: str = "sst2"
    start: str = "all"
    cut: str = ""
    mask: str = ""
    ratio: float = 0.5
    score: str = "fisher"
    steps: int = 1
    distill: bool = False
    temperature: float = 2.0
    alpha: float = 0.5
    gradual: str = ""
    regrow: bool = False
    epochs: int = 1
    lr: float = 1e-3
    seed: int = 0
    masked: bool = False


#: Scores that look at data change as the model does, so a budget by them is reached in steps.
IN_STEPS = ("taylor", "fisher")
CUT_SCORES = ("taylor", "fisher", "weight", "weight+update", "update", "random", "gate")


def steps_of(score: str) -> int:
    """In how many steps a budget is reached."""
    return 4 if score in IN_STEPS else 1


def _cuts(task: str, seed: int) -> list[PruneCell]:
    # the update score needs an update on what it ranks; with one on all linears it has
    uniform = [PruneCell(task, cut="25/40", score=score, seed=seed) for score in CUT_SCORES]
    return uniform + [
        PruneCell(task, cut="flops 0.5", score=score, steps=steps_of(score), seed=seed) for score in CUT_SCORES
    ]


def _masks(task: str, seed: int) -> list[PruneCell]:
    patterns = (("weights", 0.5), ("blocks", 0.5), ("2:4", 0.5), ("weights", 0.7), ("blocks", 0.7))
    return [
        PruneCell(task, mask=mask, ratio=ratio, seed=seed, distill=distill)
        for distill, (mask, ratio) in product((False, True), patterns)
    ]


def _distilled(cells: list[PruneCell]) -> list[PruneCell]:
    return [replace(cell, distill=True) for cell in cells]


def _first(task: str) -> list[PruneCell]:
    """The cells that say most, one seed."""
    best = [
        PruneCell(task, cut="flops 0.75", steps=4),
        PruneCell(task, cut="25/40"),
        PruneCell(task, cut="flops 0.5", steps=4),
    ]
    masks = [PruneCell(task, mask="blocks", ratio=ratio) for ratio in (0.5, 0.7)]
    return [*best, *masks, *_distilled([best[-1], masks[-1]])]


def _recovery(task: str) -> list[PruneCell]:
    """What helps to recover: settings of the teacher, and masks that grow; one seed."""
    half, most = PruneCell(task, cut="flops 0.5", steps=4), PruneCell(task, mask="blocks", ratio=0.7)
    settings = [(2.0, 0.5), (2.0, 0.9), (4.0, 0.9), (1.0, 0.5)]
    taught = [replace(c, distill=True, temperature=t, alpha=a) for c in (half, most) for t, a in settings]
    growing = [
        replace(most, score=score, gradual="cubic", regrow=regrow, distill=distill, alpha=0.9 if distill else 0.5)
        for score, regrow in (("movement", False), ("fisher", False), ("movement", True))
        for distill in (False, True)
    ]
    return [half, most, *taught, *growing, *[replace(c, epochs=3) for c in (most, growing[0], growing[1])]]


def _finalists(task: str) -> list[PruneCell]:
    """What one seed left standing, with two more; paired with the first."""
    best = [
        PruneCell(task, cut="25/40"),
        PruneCell(task, cut="flops 0.5"),
        PruneCell(task, mask="blocks", ratio=0.7),
        PruneCell(task, mask="blocks", ratio=0.5),
        PruneCell(task, cut="flops 0.75"),
    ]
    return [replace(cell, seed=seed) for seed in (1, 2) for cell in best]


def _most(task: str) -> list[PruneCell]:
    """What may bring 70 % in blocks closer: more epochs, a teacher; paired with the plain cells."""
    most = PruneCell(task, mask="blocks", ratio=0.7)
    ways = ({"epochs": 3}, {"distill": True, "alpha": 0.9})
    return [replace(most, seed=seed, **way) for way in ways for seed in range(3)]


def _more_masks(task: str) -> list[PruneCell]:
    """The other patterns' second and third seed, and the score that came second for heads and neurons."""
    patterns = (("weights", 0.7), ("2:4", 0.5), ("weights", 0.5))
    masks = [PruneCell(task, mask=mask, ratio=ratio, seed=seed) for mask, ratio in patterns for seed in (1, 2)]
    return masks + [PruneCell(task, cut="25/40", score="taylor", seed=seed) for seed in (1, 2)]


def _under_masks(task: str) -> list[PruneCell]:
    """Masks that the update keeps to: what is recovered is what is merged, and what 8-bit products start from."""
    patterns = (("4x4", 0.7), ("blocks", 0.7), ("blocks", 0.5), ("weights", 0.7), ("2:4", 0.5), ("weights", 0.5))
    return [
        PruneCell(task, mask=mask, ratio=ratio, seed=seed, masked=True) for mask, ratio in patterns for seed in range(3)
    ]


def _lasting(task: str) -> list[PruneCell]:
    """Ways to bring blocks closer where there is little text to recover with: one seed, and three of the best."""
    most = PruneCell(task, mask="blocks", ratio=0.7, epochs=5)
    best = replace(most, gradual="cubic", distill=True, alpha=0.9)
    ways = ({}, {"lr": 2e-3}, {"distill": True, "alpha": 0.9})
    return [*(replace(best, seed=seed) for seed in range(3)), *(replace(most, **way) for way in ways)]


LISTS: dict[str, list[PruneCell]] = {
    "under-masks": _under_masks("sst2"),
    "most": _most("sst2"),
    "more-masks": _more_masks("sst2"),
    "int8": [PruneCell("sst2", mask="4x4", ratio=ratio, seed=seed) for ratio, seed in product((0.7,), range(3))],
    "mrpc-few": [replace(cell, seed=0) for cell in _finalists("mrpc")[:5]]
    + [PruneCell("mrpc", cut="25/40", score=score) for score in ("taylor", "weight", "random")],
    "mrpc-longer": [PruneCell("mrpc", mask="blocks", ratio=ratio, epochs=3, masked=True) for ratio in (0.7, 0.5)],
    "mrpc-lasting": _lasting("mrpc"),
    "mrpc-finalists": _finalists("mrpc"),
    "finalists": _finalists("sst2"),
    "first": _first("sst2"),
    "recovery": _recovery("sst2"),
    **{
        f"{task}-{kind}-{seed}": make(task, seed)
        for seed, task, (kind, make) in product(range(3), ("sst2", "mrpc"), (("cuts", _cuts), ("masks", _masks)))
    },
}
