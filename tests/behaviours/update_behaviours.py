"""What an update does in every family: the shared set of tests that each family inherits."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from behaviours.families import Family
from dsee.update.layer import update_layers

# logits of order one after some ten layers
TOLERANCE = 300 * torch.finfo(torch.float32).eps


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=TOLERANCE)


def own(model: Any) -> set[str]:
    """Names of what belongs to the update or to the task head trained with it."""
    return {name for name, _ in model.named_parameters() if "dsee_" in name or "modules_to_save" in name}


def step(model: Any, batch: dict[str, torch.Tensor]) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**batch).loss.backward()
    optimizer.step()


class UpdateBehaviours:
    """Inherit and set ``family``."""

    family: ClassVar[Family]

    def test_a_fresh_update_changes_no_logit(self):
        expected = self.family.logits(self.family.base())
        assert torch.equal(self.family.logits(self.family.adapted(init_weights=True)), expected)

    def test_trainable_counts_are_true(self):
        model = self.family.adapted()
        matrices = [m for _, layer in update_layers(model) for m in parts_of(layer)]
        assert matrices
        head = sum(p.numel() for n, p in model.named_parameters() if "modules_to_save" in n)
        expected = sum(3 * (rows + columns) + 7 for rows, columns in matrices)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected + head

    def test_a_training_step_moves_the_update_and_nothing_else(self):
        model = self.family.adapted()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        step(model, self.family.batch(labels=True))
        moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
        assert moved == own(model)

    @pytest.mark.parametrize("sparing", [False, True], ids=["plain", "low_cpu_mem_usage"])
    def test_peft_loads_it_back(self, tmp_path, sparing):
        model = self.family.adapted()
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(self.family.base(), tmp_path, low_cpu_mem_usage=sparing).eval()
        assert not any(t.is_meta for t in loaded.state_dict().values())
        assert torch.equal(self.family.logits(loaded), self.family.logits(model))

    def test_the_auto_class_and_transformers_load_it_back(self, tmp_path):
        self.family.base().save_pretrained(tmp_path / "base")
        base = self.family.model.from_pretrained(tmp_path / "base")
        model = get_peft_model(base, self.family.update()).eval()
        model.save_pretrained(tmp_path / "adapter")
        expected = self.family.logits(model)
        labels = {"num_labels": 3} if self.family.task == "SEQ_CLS" else {}
        loaded = self.family.automatic.from_pretrained(tmp_path / "adapter", **labels).eval()
        assert torch.equal(self.family.logits(loaded), expected)
        plain = self.family.model.from_pretrained(tmp_path / "base")
        plain.load_adapter(str(tmp_path / "adapter"))
        assert torch.equal(self.family.logits(plain.eval()), expected)

    def test_two_adapters_switch_and_mix_in_one_batch(self):
        self.mixed(self.family.targets)

    def mixed(self, targets):
        model = self.family.adapted(target_modules=list(targets))
        first = self.family.logits(model)
        torch.manual_seed(5)
        model.add_adapter("second", self.family.update(r=2, n_sparse=5, support="random", target_modules=list(targets)))
        model.set_adapter("second")
        model.eval()
        second = self.family.logits(model)
        assert not torch.allclose(first, second, atol=1e-3)
        model.set_adapter("default")
        assert torch.equal(self.family.logits(model), first)
        names = ["default", "second", "__base__", "second"]
        batch = self.family.batch()
        with torch.no_grad():
            mixed = model(**batch, adapter_names=names).logits
        for row, name in enumerate(names):
            with torch.no_grad():
                if name == "__base__":
                    with model.disable_adapter():
                        alone = model(**batch).logits
                else:
                    model.set_adapter(name)
                    alone = model(**batch).logits
            close(mixed[row], alone[row])

    def test_disabled_it_is_the_base(self):
        model = self.family.adapted()
        expected = self.family.logits(self.family.base())
        assert not torch.allclose(self.family.logits(model), expected, atol=1e-3)
        with model.disable_adapter():
            assert torch.equal(self.family.logits(model), expected)

    def test_merging_keeps_the_logits_and_unmerging_the_base(self):
        model = self.family.adapted()
        expected = self.family.logits(model)
        model.merge_adapter()
        close(self.family.logits(model), expected)
        model.unmerge_adapter()
        close(self.family.logits(model), expected)
        with model.disable_adapter():
            close(self.family.logits(model), self.family.logits(self.family.base()))

    def test_merged_and_unloaded_it_is_a_plain_model(self):
        model = self.family.adapted()
        expected = self.family.logits(model)
        plain = model.merge_and_unload(safe_merge=True)
        assert type(plain) is self.family.model
        assert not any("dsee" in name for name in plain.state_dict())
        close(self.family.logits(plain), expected)

    def test_on_a_bfloat16_base_it_stays_in_fp32_and_trains(self):
        base = self.family.base().to(torch.bfloat16)
        model = get_peft_model(base, self.family.update())
        assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if "dsee_" in n)
        before = {name: p.detach().clone() for name, p in model.named_parameters() if "dsee_" in name}
        step(model, self.family.batch(labels=True))
        assert all(torch.isfinite(p).all() for p in model.parameters())
        assert all(not torch.equal(before[n], p) for n, p in model.named_parameters() if n in before)

    # the first versions of transformers 5 know this name only, the later ones call it deprecated
    @pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
    def test_gradient_checkpointing_gives_the_same_gradients(self):
        plain, saving = self.family.adapted(), self.family.adapted()
        saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        saving.enable_input_require_grads()
        for model in (plain, saving):
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            model.config.use_cache = False
            model.train()
            model(**self.family.batch(labels=True)).loss.backward()
        theirs = dict(saving.named_parameters())
        for name, parameter in plain.named_parameters():
            if "dsee_" in name:
                torch.testing.assert_close(theirs[name].grad, parameter.grad)

    @pytest.mark.slow
    # the compiler of torch 2.13 uses things that torch 2.13 calls deprecated
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_it_compiles_in_one_graph(self):
        model = self.family.adapted()
        expected = self.family.logits(model)
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        close(self.family.logits(compiled), expected)

    def test_a_resumed_run_ends_as_the_straight_one(self, tmp_path):
        straight = self._trainer(tmp_path / "straight")
        straight.train()
        resumed = self._trainer(tmp_path / "resumed")
        resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
        theirs = dict(straight.model.named_parameters())
        assert all(torch.equal(p, theirs[name]) for name, p in resumed.model.named_parameters())

    def _trainer(self, folder: Any) -> Trainer:
        inputs = self.family.batch(labels=True, size=12)
        rows = [{name: tensor[i] for name, tensor in inputs.items()} for i in range(12)]
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=4,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            save_steps=2,
            logging_strategy="no",
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            seed=3,
        )
        return Trainer(model=self.family.adapted(init_weights=True), args=arguments, train_dataset=rows)


def parts_of(layer: Any) -> list[tuple[int, int]]:
    """(out, in) of every matrix the layer's update counts as one: a fused projection holds several."""
    rows, columns = layer.base_weight().shape
    parts = layer.dsee_parts.get("default")
    return [(rows // 3, columns)] * len(parts) if parts else [(rows, columns)]
