"""GPT-2: query, key and value lie one after the other in one Conv1D."""

from dsee.architectures._map import Architecture
from dsee.architectures._registry import register

GPT2 = register(
    Architecture(
        name="gpt2",
        layers="h",
        query="attn.c_attn",
        key="attn.c_attn",
        value="attn.c_attn",
        output="attn.c_proj",
        ffn_in="mlp.c_fc",
        ffn_out="mlp.c_proj",
        activation="mlp.act",
        attention="attn",
        head_size="head_dim",
        heads_attributes=("num_heads",),
        width_attributes=("split_size",),
    )
)
