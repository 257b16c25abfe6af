"""Quantised bases: bitsandbytes and torchao where they are installed, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from transformers import BertForSequenceClassification, BitsAndBytesConfig, TorchAoConfig
from transformers.utils import is_bitsandbytes_available, is_torchao_available

import dsee
from conftest import adapted, batch, logits
from conftest import tiny_bert as tiny_bert_of
from dsee import support
from dsee.errors import ArchitectureError, InputError, OrderError
from dsee.surgery.linear import check_cuttable
from dsee.update.bases import check_writable, is_quantised, read_weight
from dsee.update.folded import can_fold
from dsee.update.layer import update_layers
from update.models import own, scrambled, snapshot, train_step

# both libraries warn of one thing or another when they are imported and when they run on a CPU
pytestmark = pytest.mark.filterwarnings("ignore")

BNB = pytest.mark.skipif(not is_bitsandbytes_available(), reason="bitsandbytes is not installed")
TORCHAO = pytest.mark.skipif(not is_torchao_available(), reason="torchao is not installed")
KINDS = [pytest.param("bnb8", marks=BNB), pytest.param("bnb4", marks=BNB), pytest.param("torchao", marks=TORCHAO)]
#: Error of one weight of about 0.2 x 3, by 8 and by 4 bits.
STEPS = {"bnb8": 0.01, "torchao": 0.01, "bnb4": 0.2}


def tiny_bert():
    """Rows of whole blocks of 64, as 4-bit kernels for AVX-512 want them."""
    return tiny_bert_of(hidden_size=64, intermediate_size=128)


def settings(kind):
    if kind == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["classifier"])
    # the task head is trained in full, and so has to be there in full
    return BitsAndBytesConfig(
        load_in_8bit=kind == "bnb8", load_in_4bit=kind == "bnb4", llm_int8_skip_modules=["classifier"]
    )


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def quantised(kind, folder):
    """A tiny BERT, loaded in few bits, its head in full."""
    tiny_bert().save_pretrained(folder)
    quantisation = settings(kind)
    model = BertForSequenceClassification.from_pretrained(folder, quantization_config=quantisation, device_map="cpu")
    return model.eval()


@pytest.fixture
def base(kind, tmp_path):
    return quantised(kind, tmp_path)


def test_the_weights_are_recognised_and_read(kind, base):
    linear = base.bert.encoder.layer[0].attention.self.query
    assert is_quantised(linear)
    original = tiny_bert().bert.encoder.layer[0].attention.self.query.weight
    torch.testing.assert_close(read_weight(linear).float(), original, rtol=0, atol=STEPS[kind])


def test_a_fresh_update_changes_no_logit_and_an_update_changes_them(kind, base, tmp_path):
    # of another model of the same weights: once called, some 4-bit weights cannot be read any more
    before = logits(quantised(kind, tmp_path / "bare"))
    model = adapted(base, init_weights=True)
    assert torch.equal(logits(model), before)
    scrambled(model)
    assert not torch.allclose(logits(model), before, atol=0.01)
    with model.disable_adapter():
        assert torch.equal(logits(model), before) or torch.allclose(logits(model), before, atol=1e-3)


@pytest.mark.parametrize("rule", ["grebsmo", "magnitude", "random"])
def test_the_support_is_searched_on_the_dequantised_weight(rule, base):
    model = adapted(base, support=rule)
    for name, layer in update_layers(model):
        assert layer.dsee_S["default"].n_sparse == 9
        if rule == "magnitude":
            weight = read_weight(layer.get_base_layer()).float()
            expected = support.choose(rule, weight, 9, rank=4, seed=0)
            assert torch.equal(layer.dsee_S["default"].indices.long(), expected), name


def test_a_training_step_moves_the_update_and_nothing_else(base):
    model = adapted(base)
    before = snapshot(model)
    train_step(model.train())
    moved = {
        name
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and not is_torchao(parameter) and not torch.equal(before[name], parameter)
    }
    assert moved == own(model)


def is_torchao(parameter):
    return type(parameter).__module__.startswith("torchao")


def rearranged(model):
    """Whether bitsandbytes has put 4-bit weights in another order, as it does on CPUs with AVX-512 and bf16."""
    states = [getattr(parameter, "quant_state", None) for parameter in model.parameters()]
    return any(getattr(state, "packing_format_for_cpu", False) for state in states)


def test_saving_and_loading_on_the_quantised_base(kind, base, tmp_path):
    from peft import PeftModel

    model = adapted(base)
    expected = logits(model)
    # bitsandbytes 0.50 spoils what it has rearranged once its state_dict is asked for, as saving and loading do
    spoilt = rearranged(model)
    model.save_pretrained(tmp_path / "adapter")
    bases = [quantised(kind, tmp_path / "base"), *([] if spoilt else [model.unload()])]
    for other in bases:
        again = PeftModel.from_pretrained(other, tmp_path / "adapter").eval()
        torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("way", ["merge_adapter", "dsee.merge"])
def test_merging_dequantises_adds_and_quantises_again(way, kind, base):
    model = scrambled(adapted(base))
    wanted = {
        name.removeprefix("base_model.model."): layer.base_weight().float() + layer.get_delta_weight("default")
        for name, layer in update_layers(model)
    }
    if way == "dsee.merge":
        merged = dsee.merge(model, policy="error")
        linears = {name: merged.get_submodule(name) for name in wanted}
    else:
        model.merge_adapter()
        linears = {
            name.removeprefix("base_model.model."): layer.get_base_layer() for name, layer in update_layers(model)
        }
    for name, linear in linears.items():
        assert is_quantised(linear)
        step = STEPS[kind] * 0.4 * float(wanted[name].abs().max()) + STEPS[kind]
        torch.testing.assert_close(read_weight(linear).float(), wanted[name], rtol=0, atol=step)
    assert torch.isfinite(logits(merged if way == "dsee.merge" else model)).all()


def test_a_quantised_base_is_not_folded_and_not_cut(kind, base):
    linear = base.bert.encoder.layer[0].attention.self.query
    assert not can_fold(linear, torch.zeros(300, 32))
    with pytest.raises(ArchitectureError, match="Load the model without quantisation"):
        check_cuttable(linear, "query")
    if kind != "bnb4":
        # which packs two weights in a byte, so that already its heads are miscounted and refused
        with pytest.raises(ArchitectureError, match="Load the model without quantisation"):
            dsee.prune(adapted(base), dsee.Heads(0.25))


@TORCHAO
def test_what_cannot_be_quantised_again_is_refused_by_name_before_anything_changes():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    base = tiny_bert()
    quantize_(base.bert, Int8WeightOnlyConfig())
    model = scrambled(adapted(base))
    before = logits(model)
    for merge in (model.merge_adapter, lambda: dsee.merge(model)):
        with pytest.raises(OrderError, match="cannot be quantised again"):
            merge()
    assert torch.equal(logits(model), before)
    model(**batch(labels=True)).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name in own(model))


class Int8Linear(torch.nn.Linear):
    """A stand-in for a library's layer: eight bits in the weight, one scale for each row."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        codes = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(codes, requires_grad=False)
        self.bias = torch.nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight * self.scale, self.bias)


def unknown_quantisation():
    base = tiny_bert()
    for layer in base.bert.encoder.layer:
        layer.attention.self.query = Int8Linear(layer.attention.self.query)
    return base


def test_a_weight_of_unknown_bits_is_refused_where_the_support_has_to_read_it():
    assert is_quantised(unknown_quantisation().bert.encoder.layer[0].attention.self.query)
    with pytest.raises(dsee.InputError, match="quantised weight of a Int8Linear cannot be read"):
        adapted(unknown_quantisation(), target_modules=["query"])


def test_without_s2_it_trains_and_its_merge_is_refused_by_name():
    model = adapted(unknown_quantisation(), target_modules=["query"], n_sparse=0)
    before = snapshot(model)
    train_step(model.train())
    assert {name for name, p in model.named_parameters() if not torch.equal(before[name], p)} == own(model)
    with pytest.raises(OrderError, match=r"merge: .*Int8Linear with a quantised weight"):
        dsee.merge(model.eval())
    with pytest.raises(OrderError, match="Int8Linear"):
        model.merge_adapter()


def test_a_plain_weight_is_writable_and_read_as_a_view():
    linear = torch.nn.Linear(3, 2)
    check_writable(linear, None, "merge")
    assert read_weight(linear).data_ptr() == linear.weight.data_ptr()


def test_a_4_bit_weight_in_another_order_is_refused_and_not_misread():
    """As bitsandbytes leaves it on some CPUs after the first call."""
    linear = torch.nn.Linear(64, 64)
    linear.weight = torch.nn.Parameter(torch.zeros(2048, 1, dtype=torch.uint8), requires_grad=False)
    linear.weight.quant_state = SimpleNamespace(packing_format_for_cpu=True)
    with pytest.raises(InputError, match=r"4-bit weight of a Linear.*rearranged.*Load the model again"):
        read_weight(linear)
