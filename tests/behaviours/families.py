"""One tiny model of every supported family, built in process, and what the shared tests have to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers as hf
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    get_peft_model,
)

import dsee

VOCABULARY, LABELS, HIDDEN, LAYERS, HEADS, NEURONS, LENGTH = 90, 3, 32, 2, 4, 48, 64


@dataclass(frozen=True)
class Family:
    """A family under test.

    Attributes:
        name: its ``model_type``.
        model: transformers' class.
        config: makes its tiny configuration.
        targets: the projections that carry the update in the tests.
        task: PEFT's task type.
        pad: the padding token.
    """

    name: str
    model: Any
    config: Callable[[], Any]
    targets: tuple[str, ...]
    task: str = "SEQ_CLS"
    pad: int = 0

    @property
    def automatic(self) -> Any:
        """PEFT's Auto class for the task."""
        return {
            "SEQ_CLS": AutoPeftModelForSequenceClassification,
            "CAUSAL_LM": AutoPeftModelForCausalLM,
            "SEQ_2_SEQ_LM": AutoPeftModelForSeq2SeqLM,
        }[self.task]

    def base(self, seed: int = 0, attention: str = "sdpa") -> Any:
        """A pre-trained model in small: weights large enough that every part moves the logits."""
        torch.manual_seed(seed)
        config = self.config()
        config._attn_implementation = attention if self.name not in NO_SDPA else "eager"
        model = self.model(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and "embed" not in name and "wte" not in name and "shared" not in name:
                    parameter.normal_(std=0.2)
                elif name.endswith("bias"):
                    parameter.normal_(std=0.1)
        return model.eval()

    def update(self, **changes: Any) -> dsee.DseeConfig:
        """A small update; random and not zero unless ``init_weights`` says so."""
        settings = {"task_type": self.task, "r": 3, "n_sparse": 7, "init_weights": False}
        return dsee.DseeConfig(**(settings | {"target_modules": list(self.targets)} | changes))

    def adapted(self, seed: int = 0, **changes: Any) -> Any:
        """The tiny model with an update of its own."""
        base = self.base(seed)
        torch.manual_seed(seed + 1)
        return get_peft_model(base, self.update(**changes)).eval()

    def batch(self, labels: bool = False, seed: int = 0, size: int = 4, length: int = 9) -> dict[str, torch.Tensor]:
        """Random tokens, the second row padded on the right."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, VOCABULARY, (size, length), generator=generator)
        mask = torch.ones_like(ids)
        if size > 1:
            mask[1, length // 2 :] = 0
            ids[1, length // 2 :] = self.pad
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.task == "SEQ_2_SEQ_LM":
            inputs["decoder_input_ids"] = torch.randint(5, VOCABULARY, (size, 6), generator=generator)
        if labels:
            inputs |= self._labels(ids, mask, generator)
        return inputs

    def _labels(self, ids: torch.Tensor, mask: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        if self.task == "SEQ_CLS":
            return {"labels": torch.randint(0, LABELS, (len(ids),), generator=generator)}
        if self.task == "CAUSAL_LM":
            return {"labels": ids.masked_fill(mask == 0, -100)}
        return {"labels": torch.randint(5, VOCABULARY, (len(ids), 6), generator=generator)}

    def logits(self, model: Any, **inputs: Any) -> torch.Tensor:
        """Logits of the standard batch where a token is real; what stands at padding is nobody's business."""
        batch = self.batch()
        with torch.no_grad():
            found = model(**batch, **inputs).logits
        return found[batch["attention_mask"].bool()] if self.task == "CAUSAL_LM" else found


#: transformers has no scaled-dot-product attention for these.
NO_SDPA = ("deberta-v2",)


def _bert_like(config: Any, **more: Any) -> Callable[[], Any]:
    return lambda: config(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=NEURONS,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        num_labels=LABELS,
        **more,
    )


def _llama_like(config: Any, **more: Any) -> Callable[[], Any]:
    """Grouped-query attention, two query heads to a key-value head, and embeddings tied to the language head."""
    return lambda: config(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        head_dim=HIDDEN // HEADS,
        intermediate_size=NEURONS,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )


def _distilbert() -> Any:
    return hf.DistilBertConfig(
        dim=HIDDEN,
        n_layers=LAYERS,
        n_heads=HEADS,
        hidden_dim=NEURONS,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        num_labels=LABELS,
    )


def _gpt2() -> Any:
    return hf.GPT2Config(
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=NEURONS,
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        bos_token_id=1,
        eos_token_id=2,
    )


def _t5() -> Any:
    return hf.T5Config(
        d_model=HIDDEN,
        d_kv=HIDDEN // HEADS,
        d_ff=NEURONS,
        num_layers=LAYERS,
        num_heads=HEADS,
        vocab_size=VOCABULARY,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        # its attention drops by a number of its own, out of reach of a test that wants none
        dropout_rate=0.0,
    )


_QV = ("query", "value")
_PROJ = ("q_proj", "v_proj")
_DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 8}

ALL = {
    family.name: family
    for family in (
        Family("bert", hf.BertForSequenceClassification, _bert_like(hf.BertConfig), _QV),
        Family(
            "roberta", hf.RobertaForSequenceClassification, _bert_like(hf.RobertaConfig, pad_token_id=1), _QV, pad=1
        ),
        Family("distilbert", hf.DistilBertForSequenceClassification, _distilbert, ("q_lin", "v_lin")),
        Family("electra", hf.ElectraForSequenceClassification, _bert_like(hf.ElectraConfig, embedding_size=16), _QV),
        Family(
            "deberta-v2",
            hf.DebertaV2ForSequenceClassification,
            _bert_like(hf.DebertaV2Config, **_DEBERTA),
            ("query_proj", "value_proj"),
        ),
        Family("gpt2", hf.GPT2LMHeadModel, _gpt2, ("c_attn",), "CAUSAL_LM"),
        Family("llama", hf.LlamaForCausalLM, _llama_like(hf.LlamaConfig), _PROJ, "CAUSAL_LM"),
        Family("qwen2", hf.Qwen2ForCausalLM, _llama_like(hf.Qwen2Config), _PROJ, "CAUSAL_LM"),
        Family("qwen3", hf.Qwen3ForCausalLM, _llama_like(hf.Qwen3Config), _PROJ, "CAUSAL_LM"),
        Family("mistral", hf.MistralForCausalLM, _llama_like(hf.MistralConfig), _PROJ, "CAUSAL_LM"),
        Family("t5", hf.T5ForConditionalGeneration, _t5, ("q", "v"), "SEQ_2_SEQ_LM"),
    )
}


def _with_words(name: str, words: str, **config: Any) -> Family:
    family = ALL[name]

    def changed() -> Any:
        made = family.config()
        for key, value in config.items():
            setattr(made, key, value)
        return made

    return replace(family, targets=(*family.targets, words), config=changed)


#: Families whose word embeddings carry an update too; where they are tied to the language head, only once untied.
WITH_WORDS = {
    "bert": _with_words("bert", "word_embeddings"),
    "roberta": _with_words("roberta", "word_embeddings"),
    "distilbert": _with_words("distilbert", "word_embeddings"),
    "electra": _with_words("electra", "word_embeddings"),
    "gpt2": _with_words("gpt2", "wte", tie_word_embeddings=False),
    "llama": _with_words("llama", "embed_tokens", tie_word_embeddings=False),
}

#: Both, by names of their own.
EVERY = ALL | {f"{name} with words": family for name, family in WITH_WORDS.items()}
