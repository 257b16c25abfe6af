"""Tiny models that write, their tokenizer, and data they can learn; all made in process."""

from __future__ import annotations

import json
import random

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAMES = ["mill", "vaults", "wrestlers", "phoenix", "punter", "eagle"]
FOODS = ["french", "italian", "english", "indian", "chinese", "japanese"]
END = "<|endoftext|>"
CHAT = (
    "{% for m in messages %}<|user|>{{ m['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
#: One that writes an answered question as it writes an open one, and goes on.
GOOD_CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}<|assistant|>"
    "{% else %}{{ m['content'] }}<|endoftext|>{% endif %}{% endfor %}"
)


def rows(count, seed=0):
    """Data and text with two references, short enough for a tiny model."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        name, food = draw.choice(NAMES), draw.choice(FOODS)
        text = f"the {name} serves {food} food ."
        found.append(
            {
                "source": f"name : {name} | food : {food}",
                "name": name,
                "food": food,
                "target": text,
                "references": [text, f"{name} has {food} food ."],
            }
        )
    return found


def tokenizer(chat=None):
    """Byte-level BPE of the words above, as GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    # 256 bytes, a few merges, and what ends a text
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([row["source"] + " " + row["target"] for row in rows(200)], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END, bos_token=END, pad_token=END)
    made.chat_template = chat
    return made


def gpt2(seed=0, **changes):
    """GPT-2 with two layers."""
    torch.manual_seed(seed)
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64, "vocab_size": 340}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**(sizes | ends | changes))).eval()


def llama(seed=0):
    """Llama with grouped-query attention and tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=340,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


MODELS = {"gpt2": gpt2, "llama": llama}


def lively(model, seed=0):
    """Weights large enough that texts differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "wpe" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def pretrained(folder, make, steps=150):
    """A folder with a model that has read texts and data apart, so that a small update has something to use."""
    model, words = make(), tokenizer()
    texts = [row["target"] + END for row in rows(64, seed=5)] + [row["source"] + END for row in rows(64, seed=6)]
    random.Random(0).shuffle(texts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        part = texts[step * 16 % 128 :][:16]
        encoded = words(part, padding=True, return_tensors="pt", return_token_type_ids=False)
        labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
        model.train()(**encoded, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def write_jsonl(path, content):
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path
