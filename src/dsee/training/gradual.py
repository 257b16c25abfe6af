"""A gradual schedule inside transformers' Trainer, whose checkpoints then hold the masks too."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from dsee.errors import ArtifactError, InputError
from dsee.pruning.movement import synchronise
from dsee.pruning.schedule import Gradual

#: File in a checkpoint's folder: masks and movement, and plain data in its header.
FILE = "dsee_schedule.safetensors"


class GradualCallback(TrainerCallback, ExportableState):
    """Reaches a mask rule while a Trainer tunes, and goes on after ``resume_from_checkpoint``.

    Each checkpoint's folder gets one file with masks and movement. The checkpoint's ``trainer_state.json`` holds its
    SHA-256, by which a resumed run knows that it has found the right one.
    """

    def __init__(self, schedule: Gradual, *, resume_from: str | Path | None = None) -> None:
        """Prepare.

        Args:
            schedule: what to reach, and when; shares are of all steps of the training.
            resume_from: the checkpoint's folder, if a run is resumed from one that is neither in ``output_dir`` nor in
                the arguments' ``resume_from_checkpoint``.
        """
        self.schedule, self.resume_from = schedule, resume_from
        self._model: Any = None
        self._content: bytes | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ARG002 - Trainer's signature
        """Attach the schedule and, in a resumed run, take its state from the checkpoint.

        Raises:
            InputError: the schedule does not fit the model or the training.
            ArtifactError: the checkpoint's state is not there or damaged.
        """
        if args.restore_callback_states_from_checkpoint:
            raise InputError(
                "restore_callback_states_from_checkpoint would replace GradualCallback by an empty one. Leave it off: "
                "the callback finds its state by itself."
            )
        self._model = model
        self.schedule.attach(model, state.max_steps)
        if state.global_step:
            content = _find(self._places(args, state.global_step), _digest_of(state, type(self).__name__))
            tensors, facts = _parse(content)
            self.schedule.restore(model, tensors, facts)

    def _places(self, args: Any, step: int) -> list[Path]:
        named = [
            self.resume_from,
            args.resume_from_checkpoint if isinstance(args.resume_from_checkpoint, str) else None,
        ]
        return [Path(p) for p in named if p is not None] + [Path(args.output_dir) / f"checkpoint-{step}"]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ARG002 - Trainer's signature
        """Make the choice that is due; hold trained weights to their masks."""
        self.schedule.step(model, state.global_step)
        if control.should_save:
            # the first process writes for all
            synchronise(model)

    def state(self) -> dict[str, Any]:
        """Return what goes into ``trainer_state.json``; the file itself is written right afterwards."""
        if self._model is None:
            return {"args": {}, "attributes": {}}
        tensors, facts = self.schedule.state(self._model)
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self._content = save(on_cpu, metadata={"schedule": json.dumps(facts, sort_keys=True)})
        return {"args": {}, "attributes": {"sha256": hashlib.sha256(self._content).hexdigest()}}

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - Trainer's signature
        """Write the file beside the checkpoint's others: whole or not at all."""
        if self._content is None:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        aside = folder / f".{FILE}.writing"
        with aside.open("wb") as stream:
            stream.write(self._content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(folder / FILE)
        self._content = None

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ARG002 - Trainer's signature
        """Let go of what was kept for the schedule; warn if the training ended before it did."""
        if not self.schedule.done:
            warnings.warn(
                f"Training stopped after step {state.global_step}, before the schedule did "
                f"({self.schedule.facts()['end']}): the masks are not those of {self.schedule.rule.label}.",
                RuntimeWarning,
                stacklevel=2,
            )
        self.schedule.finish(model)


def _digest_of(state: Any, name: str) -> str | None:
    stored = (state.stateful_callbacks or {}).get(name)
    stored = stored[-1] if isinstance(stored, list) else stored
    found = stored.get("attributes", {}).get("sha256") if isinstance(stored, dict) else None
    return found if isinstance(found, str) else None


def _find(places: list[Path], digest: str | None) -> bytes:
    if digest is None:
        raise ArtifactError("This checkpoint was made without GradualCallback: there are no masks to go on from.")
    for folder in places:
        if (folder / FILE).is_file():
            content = (folder / FILE).read_bytes()
            if hashlib.sha256(content).hexdigest() == digest:
                return content
    raise ArtifactError(
        f"The checkpoint's {FILE} is not in {' or '.join(str(p) for p in places)}, or is not the one that was written "
        "with it. Pass GradualCallback(..., resume_from=FOLDER), or resume from an earlier checkpoint."
    )


def _parse(content: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    # the format's own layout: the header's length in eight bytes, then the header as JSON
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return load(content), json.loads(header["__metadata__"]["schedule"])
