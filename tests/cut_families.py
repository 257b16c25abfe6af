"""Tiny models of every mapped family, language models included, that fit one plan: 4 heads to remove, 40 neurons."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

from conftest import FAMILIES, LABELS, POSITIONS, VOCABULARY, batch

SHARED = {"vocab_size": VOCABULARY, "num_labels": LABELS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
#: Two query heads of 8 features for each key-value head: 64 query rows on a width of 32.
GROUPED = SHARED | {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 40,
    "max_position_embeddings": POSITIONS,
}
#: As in the published v3 models, and with all that v2 models may have besides.
DEBERTA = SHARED | {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": POSITIONS,
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "num_labels": LABELS,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}

CONFIGS = {
    "deberta-v3": lambda: DebertaV2Config(**DEBERTA, share_att_key=True),
    "deberta-v2": lambda: DebertaV2Config(**DEBERTA, share_att_key=False, conv_kernel_size=3, conv_act="gelu"),
    "gpt2": lambda: GPT2Config(**SHARED, n_embd=32, n_layer=3, n_head=4, n_inner=40, n_positions=POSITIONS),
    "llama": lambda: LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "llama with biases": lambda: LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True),
    "qwen2": lambda: Qwen2Config(**GROUPED),
    "qwen3": lambda: Qwen3Config(**GROUPED),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=6),
    "t5": lambda: T5Config(**SEQ2SEQ, feed_forward_proj="relu"),
    "t5 gated": lambda: T5Config(**SEQ2SEQ, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}
ENCODERS = ("deberta-v2", "deberta-v3")
DECODERS = ("gpt2", "llama", "llama with biases", "qwen2", "qwen3", "mistral")
T5S = ("t5", "t5 gated")
#: All new to the maps besides the families of the shared fixture.
NAMES = (*ENCODERS, *DECODERS, *T5S)
#: Those whose heads can be cut.
HEADED = (*ENCODERS, *DECODERS)

#: The linears of their layers, for ``target_modules``.
LINEARS = (
    r".*(layer|layers|h|block)\.\d+\..*(query_proj|key_proj|value_proj|pos_key_proj|pos_query_proj|dense|c_attn|c_proj|c_fc"
    r"|q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|\.q|\.k|\.v|\.o|wi|wi_0|wi_1|wo)"
)


def build(name: str, seed: int = 0, task: str | None = None):
    """A model of that family in its usual task, or as a classifier with ``task="SEQ_CLS"``."""
    if name in FAMILIES:
        return FAMILIES[name](seed)
    config = CONFIGS[name]()
    torch.manual_seed(seed)
    if task == "SEQ_CLS" or name in ENCODERS:
        model = AutoModelForSequenceClassification.from_config(config)
    elif name in T5S:
        model = AutoModelForSeq2SeqLM.from_config(config)
    else:
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" not in key.lower() and "ln_" not in key:
                # T5 does not scale its products, so that larger ones would leave each head one token to look at
                parameter.normal_(std=0.1 if name in T5S else 0.2)
    return model.eval()


def task_type(name: str) -> str:
    """What PEFT calls the task of :func:`build`'s model."""
    return "SEQ_CLS" if name in ENCODERS or name in FAMILIES else "SEQ_2_SEQ_LM" if name in T5S else "CAUSAL_LM"


def inputs(name: str, size: int = 4, length: int = 10, labels: bool = False, seed: int = 0):
    """A batch for :func:`build`'s model, its second row padded."""
    made = batch(size, length, labels=labels and task_type(name) == "SEQ_CLS", seed=seed)
    written = torch.randint(5, VOCABULARY, (size, length), generator=torch.Generator().manual_seed(seed + 99))
    if name in T5S:
        made["decoder_input_ids"] = written
    if labels and task_type(name) != "SEQ_CLS":
        made["labels"] = written if name in T5S else made["input_ids"].clone()
    return made


def answer(model, name: str, given=None):
    """Logits where a token was read; what stands at padding is nobody's."""
    given = given or inputs(name)
    with torch.no_grad():
        logits = model(**given).logits
    if logits.dim() == 2 or name in T5S:
        return logits
    return logits[given["attention_mask"].bool()]
