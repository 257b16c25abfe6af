"""Distillation: the loss is its formula, the teacher stays as it is, and the switch in the recipe does it all."""

import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

import dsee
from conftest import adapted, batch, tiny_bert
from dsee.errors import InputError

EPS = torch.finfo(torch.float32).eps


def output(logits, **more):
    return types.SimpleNamespace(logits=logits, **more)


def divergence(student, teacher, temperature):
    """KL(teacher || student), a mean over rows, written out."""
    p = torch.exp(teacher / temperature) / torch.exp(teacher / temperature).sum(-1, keepdim=True)
    q = torch.exp(student / temperature) / torch.exp(student / temperature).sum(-1, keepdim=True)
    return (p * (p.log() - q.log())).sum(-1).mean()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 7),
    classes=st.integers(2, 5),
    temperature=st.floats(0.5, 8),
    alpha=st.floats(0, 1),
)
def test_the_loss_is_the_formula(seed, rows, classes, temperature, alpha):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(rows, classes, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    labels = torch.randint(0, classes, (rows,), generator=generator)
    how = dsee.Distillation(temperature=temperature, alpha=max(alpha, 1e-3))
    hard = -torch.log_softmax(student, -1)[torch.arange(rows), labels].mean()
    expected = (1 - how.alpha) * hard + how.alpha * temperature**2 * divergence(student, teacher, temperature)
    found = dsee.distillation_loss(student, teacher, labels, distillation=how)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), rows=st.integers(1, 6), labels=st.integers(2, 5), temperature=st.floats(0.5, 8))
def test_several_labels_at_once_are_as_many_yes_or_no_questions(seed, rows, labels, temperature):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(rows, labels, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    wanted = torch.randint(0, 2, (rows, labels), generator=generator).double()
    # each question as a choice between two classes
    pairs = [torch.stack([torch.zeros_like(x), x], -1).reshape(-1, 2) for x in (student, teacher)]
    soft = temperature**2 * divergence(*pairs, temperature)
    p = torch.sigmoid(student)
    hard = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean()
    how = dsee.Distillation(temperature=temperature, alpha=0.3)
    found = dsee.distillation_loss(student, teacher, wanted, distillation=how)
    torch.testing.assert_close(found, (0.7 * hard + 0.3 * soft).float(), rtol=1e-4, atol=1e-4)


def test_the_teachers_own_answers_cost_nothing():
    logits = torch.randn(4, 3, requires_grad=True)
    loss = dsee.distillation_loss(logits, logits.detach(), distillation=dsee.Distillation(alpha=1))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=10 * EPS)
    assert logits.grad.abs().max() <= 10 * EPS


def test_the_students_own_loss_is_the_hard_one():
    student = output(torch.randn(4, 3), loss=torch.tensor(7.0))
    teacher = torch.randn(4, 3)
    how = dsee.Distillation(temperature=1, alpha=0.25)
    expected = 0.75 * 7 + 0.25 * divergence(student.logits, teacher, 1)
    torch.testing.assert_close(dsee.distillation_loss(student, teacher, distillation=how), expected)


def test_a_regression_is_taught_by_squares():
    student, teacher, labels = torch.randn(5, 1), torch.randn(5, 1), torch.randn(5)
    how = dsee.Distillation(temperature=3, alpha=0.5)
    expected = 0.5 * (student[:, 0] - labels).square().mean() + 0.5 * (student - teacher).square().mean()
    torch.testing.assert_close(dsee.distillation_loss(student, teacher, labels, distillation=how), expected)


def test_a_language_model_is_taught_where_a_label_counts():
    student, teacher = torch.randn(2, 6, 9), torch.randn(2, 6, 9)
    labels = torch.randint(0, 9, (2, 6))
    labels[1, 3:] = -100
    counted = labels[:, 1:] != -100
    s, t = student[:, :-1][counted], teacher[:, :-1][counted]
    hard = torch.nn.functional.cross_entropy(s, labels[:, 1:][counted])
    how = dsee.Distillation(temperature=2, alpha=0.5)
    expected = 0.5 * hard + 0.5 * 4 * divergence(s, t, 2)
    found = dsee.distillation_loss(student, teacher, labels, distillation=how, causal=True)
    torch.testing.assert_close(found, expected)


def test_a_batch_without_any_label_that_counts_costs_nothing():
    student = torch.randn(2, 4, 5, requires_grad=True)
    found = dsee.distillation_loss(student, torch.randn(2, 4, 5), torch.full((2, 4), -100))
    found.backward()
    assert found.item() == 0
    assert not student.grad.any()


def test_hidden_states_are_compared_where_there_is_no_padding():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    ours, theirs = ([torch.randn(2, 3, 4) for _ in range(3)] for _ in range(2))
    student = output(torch.randn(2, 2), hidden_states=ours)
    teacher = output(student.logits.clone(), hidden_states=theirs)
    how = dsee.Distillation(alpha=1, hidden=0.5)
    kept = mask.bool()
    parts = [((a - b)[kept].square().mean() / b[kept].square().mean()) for a, b in zip(ours, theirs, strict=True)][1:]
    found = dsee.distillation_loss(student, teacher, distillation=how, attention_mask=mask)
    torch.testing.assert_close(found, 0.5 * sum(parts) / 2)
    # what stands at padding makes no difference
    theirs[1][1, 2] = 100.0
    torch.testing.assert_close(found, dsee.distillation_loss(student, teacher, distillation=how, attention_mask=mask))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"temperature": 0}, "temperature=0"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"hidden": -1}, "hidden=-1"),
        ({"alpha": 0}, "leave nothing to the teacher"),
        ({"temperature": float("nan")}, "temperature=nan"),
    ],
)
def test_impossible_settings_are_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        dsee.Distillation(**arguments)


@pytest.mark.parametrize(
    ("student", "teacher", "labels", "how", "said"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), None, {}, r"shape \(2, 4\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3), None, {}, "needs labels"),
        (torch.zeros(2, 3), output(None), None, {}, "teacher's output has no logits"),
        (torch.zeros(2, 3), torch.zeros(2, 3), None, {"alpha": 1, "hidden": 1}, "output_hidden_states"),
        (
            output(torch.zeros(2, 3), hidden_states=[torch.zeros(2, 4, 8)] * 3),
            output(torch.zeros(2, 3), hidden_states=[torch.zeros(2, 4, 8)] * 2),
            None,
            {"alpha": 1, "hidden": 1},
            "do not match one to one",
        ),
    ],
)
def test_what_does_not_fit_is_refused(student, teacher, labels, how, said):
    with pytest.raises(InputError, match=said):
        dsee.distillation_loss(student, teacher, labels, distillation=dsee.Distillation(**how))


def rows():
    inputs = batch(size=12, labels=True)
    return [{name: tensor[i] for name, tensor in inputs.items()} for i in range(12)]


def student():
    model = adapted(tiny_bert(), init_weights=True)
    dsee.prune(model, dsee.Heads(1, score="weight"), dsee.Neurons(8, score="weight"))
    return model


def trained(folder, train, **changes):
    arguments = TrainingArguments(
        str(folder),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns="teacher_logits" not in train[0],
    )
    trainer = dsee.DistillationTrainer(model=student(), args=arguments, train_dataset=train, **changes)
    trainer.train()
    return trainer


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_stored_answers_teach_as_the_teacher_itself_and_the_teacher_stays_as_it_is(tmp_path):
    from transformers import default_data_collator

    from dsee.training.teacher import Taught, collate_taught

    teacher = adapted(tiny_bert())
    teacher.train()
    before, data = parameters(teacher), rows()
    how = dsee.Distillation(alpha=0.7)
    live = trained(tmp_path, data, teacher=teacher, distillation=how)
    assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(module.training for module in teacher.modules())
    with torch.no_grad():
        answers = teacher.eval()(**batch(size=12)).logits.numpy()
    stored = trained(
        tmp_path, Taught(data, answers), distillation=how, data_collator=collate_taught(default_data_collator)
    )
    alone = dict(trained(tmp_path, data, teacher=student(), distillation=how).model.named_parameters())
    theirs, moved = dict(live.model.named_parameters()), 0
    for name, p in stored.model.named_parameters():
        # the teacher's batches differ in size, and with it the rounding
        torch.testing.assert_close(p, theirs[name], rtol=1e-3, atol=1e-4)
        moved += not torch.allclose(p, alone[name], rtol=1e-3, atol=1e-3)
    assert moved, "another teacher has to make another student"


def test_hidden_states_teach_too_and_evaluation_reports_the_students_own_loss(tmp_path):
    teacher = adapted(tiny_bert())
    how = dsee.Distillation(hidden=1.0)
    trainer = trained(tmp_path, rows(), teacher=teacher, distillation=how, eval_dataset=rows())
    model = trainer.model.eval()
    with torch.no_grad():
        own = model(**batch(size=12, labels=True)).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(own, rel=1e-4)


def test_gradient_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path):
    teacher, whole, parts = adapted(tiny_bert()), {}, {}
    for found, size, accumulated in ((whole, 12, 1), (parts, 4, 3)):
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            learning_rate=1e-2,
            optim="sgd",
            max_grad_norm=0,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = dsee.DistillationTrainer(
            model=student().eval(), args=arguments, train_dataset=rows(), teacher=teacher
        )
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer.train()
        found |= parameters(trainer.model)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)


def test_a_student_cannot_teach_itself_and_somebody_has_to_teach(tmp_path):
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    model = student()
    with pytest.raises(InputError, match="the student itself"):
        dsee.DistillationTrainer(model=model, args=arguments, teacher=model)
    with pytest.raises(InputError, match="the teacher itself"):
        dsee.DistillationTrainer(model=model, args=arguments, distillation=dsee.Distillation(hidden=1))
    with pytest.raises(InputError, match="Nobody teaches"):
        dsee.DistillationTrainer(model=model, args=arguments, train_dataset=rows()).train()
