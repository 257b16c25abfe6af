"""Small pieces the tests of the update share."""

import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

import dsee
from conftest import POSITIONS, VOCABULARY, adapted, batch
from dsee.update.layer import update_layers

SUPPORTS = ["grebsmo", "magnitude", "random"]


def tiny_gpt2(seed=0):
    """A GPT-2, whose projections are Conv1D and store their weight as (in, out)."""
    torch.manual_seed(seed)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=POSITIONS)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "c_" in name:
                parameter.normal_(std=0.2)
    return model.eval()


def adapted_gpt2(**config):
    """With one update over the whole of a layer, unless ``fused_parts`` says otherwise."""
    settings = {"task_type": "CAUSAL_LM", "target_modules": ["c_attn"], "support": "magnitude", "fused_parts": {}}
    return adapted(tiny_gpt2(), **(settings | config))


def matrices(model):
    """(out, in) of every matrix that carries an update."""
    return [tuple(layer.base_weight().shape) for _, layer in update_layers(model)]


def head_size(base):
    """Values of the task head: for DistilBERT PEFT takes ``pre_classifier`` along, as its name ends the same way."""
    return sum(p.numel() for name, p in base.named_parameters() if "classifier" in name)


def own(model):
    """Names of the parameters that belong to the update or to the trained head."""
    return {name for name, _ in model.named_parameters() if "dsee_" in name or "modules_to_save" in name}


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def train_step(model, optimizer=None, seed=0):
    """One step on one batch; returns the optimizer."""
    optimizer = optimizer or torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model(**batch(labels=True, seed=seed)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def scrambled(model, adapter="default", seed=3):
    """Give every part of one adapter, its head included, values of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{adapter}." in name and ("dsee_" in name or "modules_to_save" in name):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def dense_update(layer, adapter="default"):
    """s (U V + S2) in (out, in) orientation, from the stored tensors alone."""
    delta = torch.zeros(layer.base_weight().shape, dtype=torch.float64)
    if adapter in layer.dsee_U:
        delta += layer.dsee_U[adapter].weight.detach().double() @ layer.dsee_V[adapter].weight.detach().double()
    if adapter in layer.dsee_S:
        sparse = layer.dsee_S[adapter]
        for flat, value in zip(sparse.indices.tolist(), sparse.weight.tolist(), strict=True):
            delta[flat // delta.shape[1], flat % delta.shape[1]] += value
    return delta * layer.dsee_scaling[adapter]


def adapter_tensors(folder):
    return load_file(folder / "adapter_model.safetensors")


def two_adapters(base, **second):
    """A model with adapters "default" and "second", whose updates and heads differ."""
    model = adapted(base)
    settings = {"task_type": "SEQ_CLS", "r": 2, "n_sparse": 5, "support": "random", "init_weights": False} | second
    model.add_adapter("second", dsee.DseeConfig(**settings))
    return scrambled(scrambled(model, "default", 3), "second", 4).eval()


def close(dtype=torch.float32):
    """Tolerance for logits of the tiny models, which are of order one and pass through some twenty layers."""
    return {"rtol": 0.0, "atol": 200 * torch.finfo(dtype).eps}
