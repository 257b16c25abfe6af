"""Llama, Qwen2, Qwen3 and Mistral: key-value heads shared by query heads, and a gated feed-forward part."""

from dsee.architectures._map import Architecture
from dsee.architectures._registry import register

LLAMA = register(
    Architecture(
        name="llama",
        layers="layers",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        output="self_attn.o_proj",
        ffn_in="mlp.up_proj",
        gate="mlp.gate_proj",
        ffn_out="mlp.down_proj",
        activation="mlp.act_fn",
        activated="gate",
        attention="self_attn",
        head_size="head_dim",
        neurons_attributes=("mlp.intermediate_size",),
        uniform=(
            ("num_attention_heads", "query_heads"),
            ("num_key_value_heads", "heads"),
            ("head_dim", "head_size"),
            ("intermediate_size", "neurons"),
        ),
        model_types=("qwen2", "qwen3", "mistral"),
    )
)
