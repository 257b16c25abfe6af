"""Pre-train a small GPT-2 from plain text: tokenizer, model, checkpoints that a killed run goes on from.

    python benchmarks/pretrain_gpt2.py OUT --text books/*.txt more.parquet    # files: text, Parquet or JSON Lines
    python benchmarks/pretrain_gpt2.py OUT --text ... --steps 6000 --batch 8 --length 128
    python benchmarks/pretrain_gpt2.py OUT --text ... --validation held-out.txt

The same arguments and seed give the same bytes, on one thread, whether the run was stopped on the way or not: the order
of the blocks follows from the seed and the step alone, and a checkpoint holds the weights and the optimizer's state.
OUT then holds a plain transformers folder, with which `dsee run` starts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import numpy as np
import torch

END = "<|endoftext|>"
#: Everything a checkpoint is under; the rest of the folder is the finished model.
STATE = "checkpoint.safetensors"


def texts(path: Path, column: str) -> Iterator[str]:
    """Paragraphs or lines of a file."""
    from dsee.tasks.table import SUFFIXES, read_table

    if path.suffix.lower() in SUFFIXES:
        yield from (text for text in read_table(path)[column] if text)
        return
    with path.open(encoding="utf-8") as stream:
        yield from stream


def make_tokenizer(files: list[Path], column: str, size: int) -> Any:
    """Byte-level BPE of the texts, as GPT-2's: no text is unknown to it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator((text for file in files for text in texts(file, column)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
    )


def token_blocks(files: list[Path], column: str, tokenizer: Any, length: int) -> np.ndarray:
    """All texts end to end in blocks, (blocks, length); a file ends with the token that ends texts."""
    parts: list[np.ndarray] = []
    kind = np.uint16 if len(tokenizer) < 2**16 else np.uint32
    for file in files:
        chunk: list[str] = []
        for text in texts(file, column):
            chunk.append(text if text.endswith("\n") else text + "\n")
            if len(chunk) == 1000:
                parts.append(_ids(chunk, tokenizer, kind))
                chunk = []
        parts += [_ids(chunk, tokenizer, kind)] if chunk else []
        parts.append(np.array([tokenizer.eos_token_id], dtype=kind))
    stream = np.concatenate(parts)
    count = len(stream) // length
    if count == 0:
        sys.exit(f"{len(stream)} tokens are less than one block of {length}: give more text or a smaller --length.")
    return stream[: count * length].reshape(count, length)


def _ids(chunk: list[str], tokenizer: Any, kind: Any) -> np.ndarray:
    rows = tokenizer(chunk, add_special_tokens=False, verbose=False)["input_ids"]
    return np.array([token for row in rows for token in row], dtype=kind)


def batch_of(blocks: np.ndarray, step: int, size: int, seed: int) -> torch.Tensor:
    """The blocks of one step, (size, length): every pass over the data is a new permutation."""
    chosen = []
    for place in range(step * size, (step + 1) * size):
        turn, at = divmod(place, len(blocks))
        chosen.append(blocks[_order(len(blocks), seed, turn)[at]])
    return torch.from_numpy(np.stack(chosen).astype(np.int64))


_ORDERS: dict[tuple[int, int, int], np.ndarray] = {}


def _order(count: int, seed: int, turn: int) -> np.ndarray:
    if (count, seed, turn) not in _ORDERS:
        # no more than two passes are ever needed at once
        for old in list(_ORDERS)[:-1]:
            del _ORDERS[old]
        _ORDERS[count, seed, turn] = np.random.default_rng([seed, turn]).permutation(count)
    return _ORDERS[count, seed, turn]


def rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine down to a tenth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


def new_model(options: argparse.Namespace, vocabulary: int) -> Any:
    """An untrained GPT-2 of the wanted size, without dropout: one pass over the data overfits nothing."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(options.seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=options.positions,
        n_embd=options.width,
        n_layer=options.layers,
        n_head=options.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def save_state(folder: Path, model: Any, optimizer: torch.optim.Optimizer, step: int, key: str) -> None:
    """Write weights and optimizer aside, then rename: a kill leaves the last whole checkpoint."""
    from safetensors.torch import save_file

    tensors = {f"model.{name}": p.detach().contiguous() for name, p in model.named_parameters()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
    aside = folder / f".{STATE}.writing"
    save_file(tensors, aside, metadata={"step": str(step), "key": key})
    with aside.open("rb") as stream:
        os.fsync(stream.fileno())
    aside.replace(folder / STATE)


def load_state(folder: Path, model: Any, optimizer: torch.optim.Optimizer, key: str) -> int:
    """Take up the last checkpoint, if it was made with the same arguments; return the step to go on with."""
    from safetensors import safe_open

    if not (folder / STATE).is_file():
        return 0
    with safe_open(folder / STATE, framework="pt") as file:
        facts = file.metadata()
        if facts["key"] != key:
            sys.exit(f"{folder / STATE} is of a run with other arguments or texts. Choose an empty folder.")
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name in file.keys():  # noqa: SIM118 - no dict
            part, _, rest = name.partition(".")
            if part == "optimizer":
                number, _, field = rest.partition(".")
                states.setdefault(int(number), {})[field] = file.get_tensor(name)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(f"model.{name}"))
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": states, "param_groups": whole["param_groups"]})
    return int(facts["step"])


@torch.no_grad()
def held_out(model: Any, blocks: np.ndarray, batch: int) -> float:
    """Mean loss in nats a token."""
    model.eval()
    total, count = 0.0, 0
    for at in range(0, len(blocks), batch):
        ids = torch.from_numpy(blocks[at : at + batch].astype(np.int64))
        # every block has as many tokens that are predicted, so the mean of means is the mean
        total += float(model(input_ids=ids, labels=ids).loss) * len(ids)
        count += len(ids)
    model.train()
    return total / count


def train(options: argparse.Namespace, folder: Path, blocks: np.ndarray, tokenizer: Any, key: str) -> Any:
    """Train from the last checkpoint to the end."""
    model = new_model(options, len(tokenizer)).train()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.95))
    start = load_state(folder, model, optimizer, key)
    if start:
        print(f"going on from step {start}", flush=True)
    begun = time.process_time()
    for step in range(start, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, options.steps, options.lr, options.warmup)
        ids = batch_of(blocks, step, options.batch, options.seed)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % options.every == 0 or done == options.steps:
            save_state(folder, model, optimizer, done, key)
            spent = time.process_time() - begun
            print(f"step {done}/{options.steps} loss {float(loss):.3f} {spent:.0f} CPU s", flush=True)
    return model


def arguments() -> argparse.Namespace:
    """The command line; the defaults are those of gpt2-mini."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the model and of its checkpoints")
    parser.add_argument("--text", nargs="+", type=Path, required=True, help="files to learn from")
    parser.add_argument("--validation", nargs="+", type=Path, default=[], help="files to report the perplexity of")
    parser.add_argument("--column", default="text", help="column of tables")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--length", type=int, default=128, help="tokens of a block")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """The command."""
    options = arguments()
    torch.set_num_threads(options.threads)
    for file in [*options.text, *options.validation]:
        if not file.is_file():
            sys.exit(f"{file}: there is no such file.")
    if options.length > options.positions:
        sys.exit(f"--length {options.length} is more than --positions {options.positions}.")
    options.out.mkdir(parents=True, exist_ok=True)
    said = {name: value for name, value in vars(options).items() if name not in ("out", "text", "validation", "every")}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for file in options.text:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    # the same texts and size give the same tokenizer, so it need not be stored for a checkpoint's sake
    tokenizer = make_tokenizer(options.text, options.column, options.vocabulary)
    blocks = token_blocks(options.text, options.column, tokenizer, options.length)
    print(f"{len(tokenizer)} tokens in the vocabulary, {blocks.size:,} in the texts", flush=True)
    model = train(options, options.out, blocks, tokenizer, digest.hexdigest())
    if options.validation:
        apart = token_blocks(options.validation, options.column, tokenizer, options.length)
        print(f"held-out perplexity {math.exp(held_out(model, apart, options.batch)):.1f}", flush=True)
    model.eval().save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
