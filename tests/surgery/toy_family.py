"""A transformer that no library knows, built of Linear or of GPT-2's Conv1D, and its map."""

from types import SimpleNamespace

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from conftest import LABELS, VOCABULARY
from dsee.architectures import Architecture

TOY = Architecture(
    name="toy",
    layers="blocks",
    query="attend.ask",
    key="attend.offer",
    value="attend.give",
    output="attend.join",
    ffn_in="widen",
    ffn_out="narrow",
    attention="attend",
    head_size="size",
    heads_attributes=("heads",),
)

KINDS = {"Linear": nn.Linear, "Conv1D": lambda width_in, width_out: Conv1D(width_out, width_in)}
WIDTH, HEADS, SIZE, NEURONS = 20, 4, 5, 24


class ToyConfig(PretrainedConfig):
    model_type = "toy"


class Attend(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.heads, self.size = HEADS, SIZE
        self.ask, self.offer, self.give, self.join = (make(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = (
            part(x).view(batch, tokens, self.heads, self.size).transpose(1, 2)
            for part in (self.ask, self.offer, self.give)
        )
        weights = (q @ k.transpose(2, 3) / self.size**0.5).softmax(-1)
        return self.join((weights @ v).transpose(1, 2).reshape(batch, tokens, -1))


class Block(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.attend = Attend(make)
        self.widen, self.narrow = make(WIDTH, NEURONS), make(NEURONS, WIDTH)

    def forward(self, x):
        x = x + self.attend(x)
        return x + self.narrow(torch.tanh(self.widen(x)))


class Toy(nn.Module):
    """No transformers model: all it has of theirs is a configuration with a ``model_type``."""

    def __init__(self, kind, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.config = ToyConfig()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block(KINDS[kind]) for _ in range(2))
        self.head = nn.Linear(WIDTH, LABELS)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        logits = self.head(x.mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)
