"""What a recipe may say: pydantic models whose unknown keys are errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dsee.pruning.gates import STRENGTH
from dsee.tasks.generation.spec import KINDS, GenerationSpec, check_keys
from dsee.tasks.spec import DataSpec
from dsee.training.baselines import Baseline, become
from dsee.training.cut_spec import HeadsSpec, NeuronsSpec, Scope
from dsee.training.distillation import Distillation
from dsee.training.method_keys import Method, mistakes
from dsee.training.schedule_spec import ScheduleSpec

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0.0, lt=1.0)]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class UpdateSpec(Section):
    """The update dW = s (U V + S2); the names are those of :class:`dsee.DseeConfig`."""

    r: Annotated[int, Field(ge=0)] = 8
    alpha: Annotated[float, Field(gt=0)] = 32.0
    n_sparse: Annotated[int, Field(ge=0)] = 64
    use_rslora: bool = False
    support: str = "grebsmo"
    masked: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | None = None
    rank_pattern: dict[str, Annotated[int, Field(ge=0)]] = {}
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = {}
    n_sparse_pattern: dict[str, Annotated[int, Field(ge=0)]] = {}
    bias: Literal["none", "all", "dsee_only"] = "none"


class TrainSpec(Section):
    """One stage of tuning.

    Attributes:
        epochs: passes over the training part.
        learning_rate: peak, reached after the warm-up and falling linearly to 0; of V, and of all that has none below.
        up_ratio: U's learning rate over V's.
        sparse_learning_rate: of S2.
        head_learning_rate: of the task head and other modules trained in full.
        batch_size: sentences per step.
        warmup: share of the steps.
        weight_decay: of AdamW; S2, biases and norms have none.
        max_grad_norm: gradient clipping.
        patience: stop after so many evaluations without a better validation figure; None runs all epochs.
        max_steps: steps instead of epochs; needed where the data are streamed.
        eval_steps: evaluate every so many steps instead of after each epoch.
    """

    epochs: Positive = 3
    learning_rate: Rate = 5e-4
    up_ratio: Annotated[float, Field(gt=0)] = 1.0
    sparse_learning_rate: Rate | None = None
    head_learning_rate: Rate | None = None
    batch_size: Positive = 32
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.06
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    patience: Positive | None = None
    max_steps: Positive | None = None
    eval_steps: Positive | None = None


class DistillSpec(Section):
    """See :class:`dsee.Distillation`."""

    temperature: Annotated[float, Field(gt=0)] = Distillation.temperature
    alpha: Annotated[float, Field(ge=0, le=1)] = Distillation.alpha
    hidden: Annotated[float, Field(ge=0)] = Distillation.hidden

    @model_validator(mode="after")
    def _something(self) -> DistillSpec:
        if not self.alpha and not self.hidden:
            raise ValueError("alpha: 0 and hidden: 0 leave nothing to the teacher; say distill: false instead")
        return self


class RecoverSpec(TrainSpec):
    """Tuning after pruning.

    Attributes:
        distill: the dense tuned model teaches the pruned one; ``true`` for the defaults.
    """

    distill: DistillSpec | None = None

    @field_validator("distill", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return {True: {}, False: None}[value] if isinstance(value, bool) else value


class WeightsSpec(Section):
    """See :class:`dsee.Weights`; the score is one that looks at data, since a recipe has some."""

    ratio: Rate
    score: str = "fisher"
    scope: Scope = "global"
    groups: Literal["paper", "one"] | None = None
    floor: Annotated[float, Field(ge=0, lt=1)] | None = None
    targets: list[str] | None = None


class BlocksSpec(WeightsSpec):
    """See :class:`dsee.Blocks`."""

    shape: tuple[Positive, Positive] = (4, 1)


class NofMSpec(Section):
    """See :class:`dsee.NofM`."""

    n: Positive
    m: Positive
    score: str = "fisher"
    targets: list[str] | None = None


class BudgetSpec(Section):
    """See :class:`dsee.Budget`; the pass that FLOPs or time are for is that of the section ``measure``."""

    flops: Rate | None = None
    latency: Rate | None = None
    parameters: Rate | None = None
    score: str = "fisher"
    steps: Positive | None = None
    multiple_of: Positive | None = None

    @model_validator(mode="after")
    def _one(self) -> BudgetSpec:
        if sum(share is not None for share in (self.flops, self.latency, self.parameters)) != 1:
            raise ValueError("give exactly one of flops, latency, parameters, the share that may remain")
        return self


class GatesSpec(Section):
    """See :func:`dsee.add_gates` and :class:`dsee.GateCallback`."""

    strength: Annotated[float, Field(ge=0)] = STRENGTH
    heads: bool = True
    neurons: bool = True

    @model_validator(mode="after")
    def _something(self) -> GatesSpec:
        if not self.heads and not self.neurons:
            raise ValueError("heads: false and neurons: false leave nothing to gate; say gates: false instead")
        return self


class PruneSpec(Section):
    """What is removed, when, and how many training sentences the scores that look at data may see.

    Attributes:
        schedule: reach the rule for weights gradually while recovering; None does it at once, before. Heads and neurons
            always go at once.
    """

    heads: HeadsSpec | None = None
    neurons: NeuronsSpec | None = None
    weights: WeightsSpec | None = None
    blocks: BlocksSpec | None = None
    nofm: NofMSpec | None = None
    schedule: ScheduleSpec | None = None
    budget: BudgetSpec | None = None
    calibration: Positive = 512

    @field_validator("weights", "blocks", mode="before")
    @classmethod
    def _bare_ratio(cls, value: Any) -> Any:
        """``weights: 0.5`` is short for ``weights: {ratio: 0.5}``."""
        return {"ratio": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    @field_validator("nofm", mode="before")
    @classmethod
    def _bare_pair(cls, value: Any) -> Any:
        """``nofm: [2, 4]`` is short for ``nofm: {n: 2, m: 4}``."""
        if isinstance(value, (int, float)):
            # to YAML 1.1, 2:4 without quotes is a number to the base of 60
            raise ValueError('give a pair, such as [2, 4] or "2:4" in quotes')
        parts = value.split(":") if isinstance(value, str) else value
        return {"n": parts[0], "m": parts[1]} if isinstance(parts, list) and len(parts) == 2 else value

    @field_validator("schedule", mode="before")
    @classmethod
    def _bare_law(cls, value: Any) -> Any:
        """``schedule: cubic`` is short for ``schedule: {law: cubic}``."""
        return {"law": value} if isinstance(value, str) else value

    @field_validator("heads", "neurons", mode="before")
    @classmethod
    def _bare_amount(cls, value: Any) -> Any:
        """``heads: 0.25`` is short for ``heads: {amount: 0.25}``."""
        return {"amount": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _something(self) -> PruneSpec:
        patterns = [name for name in ("weights", "blocks", "nofm") if getattr(self, name) is not None]
        cuts = [self.heads, self.neurons, self.budget]
        if all(cut is None for cut in cuts) and not patterns:
            raise ValueError(
                "give heads, neurons or both, a budget, or one of weights, blocks, nofm; leave the section out to skip "
                "pruning"
            )
        if len(patterns) > 1:
            raise ValueError(f"{' and '.join(patterns)} are patterns for the same weights; choose one")
        if self.schedule and not patterns:
            raise ValueError("schedule: there is nothing to reach gradually; give weights, blocks or nofm")
        if patterns and getattr(self, patterns[0]).score == "movement" and not self.schedule:
            raise ValueError("score: movement is learned while recovering; add a schedule, such as schedule: cubic")
        if self.budget and (self.heads or self.neurons):
            raise ValueError("a budget chooses heads and neurons by itself; give either that or amounts of them")
        return self

    def gated(self) -> list[str]:
        """Return the units that are ranked by gates."""
        if self.budget and self.budget.score == "gate":
            return ["heads", "neurons"]
        cuts = {"heads": self.heads, "neurons": self.neurons}
        return [unit for unit, cut in cuts.items() if cut and cut.explicit is None and cut.score == "gate"]


class ExportSpec(Section):
    """Formats to export besides the artifact."""

    onnx: list[Literal["fp32", "int8"]] = ["fp32", "int8"]


class MeasureSpec(Section):
    """The shape that FLOPs, latency and memory are measured on, one thread.

    Attributes:
        batch: sentences.
        sequence: tokens per sentence.
        runs: timed calls of each variant.
        memory: measure peak memory, which takes a fresh process for each variant.
    """

    batch: Positive = 1
    sequence: Positive = 128
    runs: Positive = 30
    memory: bool = True


class Recipe(Section):
    """The whole chain. Paths are relative to the recipe's folder.

    Attributes:
        model: a folder, a hub name, or ``package:NAME/PATH``.
        gguf_file: name of a GGUF file in ``model``, whose weights are then dequantised.
        task: what the model learns: to choose a label, or to write.
        data: files and columns.
        generation: columns, decoding and scoring of a model that writes.
        metric: the validation figure that chooses the epoch and leads the report; None for the task's usual one.
        method: how to tune: the update, or a baseline to compare it with.
        baseline: turns the recipe into that of a baseline, see :func:`dsee.training.baselines.become`.
        update: what is trained.
        gates: learned beside it while tuning, for the score "gate"; ``true`` for the defaults.
        tune: the first stage.
        prune: what is removed; None skips pruning and recovering.
        recover: tuning after pruning.
        export: further formats.
        measure: what the report measures.
        output: folder for everything that comes out.
        seed: seeds the split, the support, the task head and the order of the batches.
        max_length: longest input in tokens.
        base_dropout: dropout inside the frozen base while tuning; None keeps the model's own. 0 saves about a quarter
            of the time, since a small update hardly overfits.
        attention_dropout: dropout of the attention weights alone; None leaves it to ``base_dropout``.
        group_by_length: put sentences of like length into a batch, so that little is padded.
        cache_prefix: run the frozen layers below the first adapted one once instead of in every epoch; needs
            ``update.layers_to_transform`` without the first layer, and no dropout below.
        report_to: who is told of losses and figures while a stage tunes.
        fsdp: while tuning, every process holds a piece of the model (FSDP2) instead of all of it.
    """

    model: str
    gguf_file: str | None = None
    task: Literal["text-classification", "data-to-text", "instruction", "language-modelling"] = "text-classification"
    data: DataSpec
    generation: GenerationSpec = GenerationSpec()
    metric: str | None = None
    method: Method = "dsee"
    baseline: Baseline | None = None
    update: UpdateSpec = UpdateSpec()
    gates: GatesSpec | None = None
    tune: TrainSpec = TrainSpec()
    prune: PruneSpec | None = None
    recover: RecoverSpec = RecoverSpec(epochs=2)
    export: ExportSpec = ExportSpec()
    measure: MeasureSpec = MeasureSpec()
    output: str = "dsee-run"
    seed: Annotated[int, Field(ge=0)] = 0
    max_length: Positive = 128
    base_dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    group_by_length: bool = True
    cache_prefix: bool = False
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = []
    fsdp: bool = False

    @model_validator(mode="after")
    def _to_baseline(self) -> Recipe:
        if self.baseline:
            become(self)
        return self

    @model_validator(mode="after")
    def _keys_of_the_method(self) -> Recipe:
        if found := mistakes(self):
            raise ValueError("\n  ".join(found))
        return self

    @property
    def writes(self) -> bool:
        """Whether the model learns to write instead of choosing a label."""
        return self.task in KINDS

    @model_validator(mode="after")
    def _keys_of_the_task(self) -> Recipe:
        if self.writes:
            check_keys(self.task, self.data, self.generation, self.metric)
        elif self.gguf_file is not None:
            raise ValueError(
                f"gguf_file: such files hold models that write; name a task of writing ({', '.join(KINDS)})"
            )
        elif "generation" in self.model_fields_set:
            raise ValueError(f"generation: is for tasks of writing ({', '.join(KINDS)}); name one as task")
        return self

    @model_validator(mode="after")
    def _someone_to_teach(self) -> Recipe:
        if self.recover.distill and not self.prune:
            raise ValueError("recover.distill: nothing is pruned, so there is no model to teach; add a prune section")
        return self

    @field_validator("gates", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return {True: {}, False: None}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _end_of_a_stream(self) -> Recipe:
        stages = {"tune": self.tune} | ({"recover": self.recover} if self.prune else {})
        for name, stage in stages.items():
            if self.data.streaming and stage.max_steps is None:
                raise ValueError(f"data.streaming: nobody knows how long a stream is; set {name}.max_steps")
        known = self.writes or self.data.kind == "regression" or self.data.labels or isinstance(self.data.label, list)
        if self.data.streaming and not known:
            raise ValueError("data.streaming: the labels are not known before the end; list them under labels")
        return self

    @model_validator(mode="after")
    def _gates_to_rank_by(self) -> Recipe:
        for unit in self.prune.gated() if self.prune else []:
            if self.gates is None or not getattr(self.gates, unit):
                raise ValueError(f"prune: score 'gate' ranks {unit} by gates that tuning has learned; add gates: true")
        return self
