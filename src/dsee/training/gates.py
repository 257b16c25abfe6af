"""Tuning with gates through transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from dsee.errors import InputError, OrderError
from dsee.pruning.gates import STRENGTH, check_strength, gate_values, penalise_steps, set_gates


class GateCallback(TrainerCallback, ExportableState):
    """Puts the l1 penalty on the gates of a Trainer's model, and keeps their values in its checkpoints.

    The penalty enters as its subgradient, added to the gates' gradients right before each optimizer step; see
    :func:`dsee.pruning.gates.penalise_steps` for why there. The logged loss is the task's alone. A checkpoint of a
    PeftModel holds the adapter only, and an adapter does not own the base's gates: their values go into the
    checkpoint's ``trainer_state.json`` and come back from there on resuming and with ``load_best_model_at_end``.
    """

    def __init__(self, strength: float = STRENGTH) -> None:
        """Set the penalty.

        Args:
            strength: loss per unit of sum of |gate|; 0 only keeps the gates in the checkpoints.

        Raises:
            InputError: ``strength`` is negative.
        """
        check_strength(strength)
        self.strength = strength
        self.model: Any = None
        self.handle: Any = None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores of this callback: the strength and the gates' values."""
        values = {} if self.model is None else gate_values(self.model)
        stored = {name: gate.double().tolist() for name, gate in values.items()}
        return {"args": {"strength": self.strength}, "attributes": {"stored": stored}}

    def on_train_begin(
        self,
        args: Any,  # noqa: ARG002 - Trainer's signature
        state: Any,
        control: Any,  # noqa: ARG002 - Trainer's signature
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Restore the gates of a resumed run and start the penalty."""
        self.model = model
        # Accelerate wraps it
        inner = getattr(optimizer, "optimizer", optimizer)
        if not hasattr(inner, "register_step_pre_hook"):
            raise InputError(f"GateCallback: a {type(inner).__name__} offers no hook before its step; use torch's own.")
        self.handle = penalise_steps(model, inner, self.strength)
        if state.global_step:
            self._restore(state, f"step {state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - Trainer's signature
        """End the penalty, and go back to the best checkpoint's gates if Trainer has gone back to that."""
        self.handle.remove()
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            path = Path(state.best_model_checkpoint) / "trainer_state.json"
            self._restore(TrainerState.load_from_json(str(path)), str(path.parent))
        self.model = self.handle = None

    def _restore(self, state: Any, where: str) -> None:
        found = (state.stateful_callbacks or {}).get(type(self).__name__)
        if not isinstance(found, dict) or not found["attributes"]["stored"]:
            raise OrderError(
                f"GateCallback: the checkpoint of {where} holds no gates: it was written without this callback. "
                "Start over, with one GateCallback among the Trainer's callbacks."
            )
        set_gates(self.model, found["attributes"]["stored"])
