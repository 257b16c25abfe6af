"""Sparse kernels against dense products: per layer and per whole model, in the same run, one thread, CPU seconds.

    python benchmarks/bench_kernels.py                    # layers and models
    python benchmarks/bench_kernels.py layers             # one part: layers, models, threads
    python benchmarks/bench_kernels.py models --onnx      # with ONNX Runtime fp32 and int8 beside them (the onnx extra)

Weights are random, zeros in blocks of four outputs or single. Ratios are dense PyTorch fp32 over the variant, medians
of interleaved rounds; of models in bursts of five calls, with the ratio of the bursts' first calls in brackets: those
find their weights driven out of the caches by the model before. GFLOP/s count the multiply-adds that are done; the
peak is what a loop of independent fused multiply-adds reaches on this core in the same run. DSEE_KERNELS=avx2 measures
another of the paths that the machine has.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import BertForSequenceClassification

import dsee
from common import RESULTS, SHAPES, config, cpu_seconds, in_turns, keep
from dsee.kernels import library, pack, sparse_linear
from dsee.kernels.compile import X86, compiler
from dsee.measure.sample import sample_inputs

LAYERS = [(3072, 768), (768, 3072), (768, 768), (1536, 384), (384, 1536), (384, 384)]
TOKENS = (1, 16, 128, 512)
LAYER_ZEROS = (0.5, 0.7, 0.8, 0.9)
#: Sentences and tokens; of the larger shape those that take minutes rather than hours.
BATCHES = {
    "MiniLM-L6": [(1, 1), (1, 96), (1, 128), (8, 128), (2, 384), (32, 128)],
    "BERT-base": [(1, 96), (1, 128), (2, 384)],
}
#: Kind and share of zeros of the whole models.
MODELS = [("blocks", 0.5), ("blocks", 0.7), ("blocks", 0.8), ("weights", 0.7), ("weights", 0.8), ("weights", 0.9)]
PEAK = """
typedef float vec __attribute__((vector_size(4 * LANES)));
float peak(long rounds) {
    vec s[12], a, b;
    for (int i = 0; i < LANES; i++) a[i] = 1.0f + 1e-7f * i, b[i] = 1e-9f * i;
    for (int k = 0; k < 12; k++) s[k] = a;
    for (long i = 0; i < rounds; i++) {
        s[0] = s[0] * a + b, s[1] = s[1] * a + b, s[2] = s[2] * a + b, s[3] = s[3] * a + b;
        s[4] = s[4] * a + b, s[5] = s[5] * a + b, s[6] = s[6] * a + b, s[7] = s[7] * a + b;
        s[8] = s[8] * a + b, s[9] = s[9] * a + b, s[10] = s[10] * a + b, s[11] = s[11] * a + b;
    }
    float sum = 0;
    for (int k = 0; k < 12; k++) sum += s[k][0];
    return sum;
}
"""


def peak() -> float:
    """GFLOP/s of this core, from registers alone."""
    # VNNI, which a path may have besides, is of integers
    name = library().path.removesuffix("_vnni")
    lanes, flags = {"avx2": (8, X86["path_avx2.c"]), "avx512": (16, X86["path_avx512.c"])}.get(name, (4, ()))
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder) / "peak.c", Path(folder) / "peak.so"
        source.write_text(PEAK)
        command = [*compiler(), "-O3", "-ffp-contract=fast", "-shared", "-fPIC", f"-DLANES={lanes}", *flags]
        subprocess.run([*command, "-o", str(built), str(source)], check=True)
        call = ctypes.CDLL(str(built)).peak
        call.restype = ctypes.c_float
        best, rounds = 0.0, 3_000_000
        for _ in range(8):
            start = time.process_time()
            call(ctypes.c_long(rounds))
            best = max(best, 2e-9 * 12 * lanes * rounds / (time.process_time() - start))
    return best


def sparse(rows: int, columns: int, zeros: float, kind: str) -> torch.Tensor:
    """A random weight with its smallest entries, or blocks of four, set to zero."""
    weight = 0.02 * torch.randn(rows, columns)
    tall, wide = {"weights": (1, 1), "blocks": (4, 1), "4x4": (4, 4)}[kind]
    size = weight.view(rows // tall, tall, columns // wide, wide).abs().sum((1, 3))
    kept = size > size.flatten().kthvalue(int(zeros * size.numel())).values
    return weight * kept.repeat_interleave(tall, 0).repeat_interleave(wide, 1)


def layers(top: float) -> list[dict[str, Any]]:
    found = []
    print(f"\nlayers, fp32, one thread; speed-up over torch's dense product (GFLOP/s of it, % of {top:.0f} at best)")
    for rows, columns in LAYERS:
        for tokens in TOKENS:
            x, bias = torch.randn(tokens, columns), torch.randn(rows)
            row: dict[str, Any] = {"out": rows, "in": columns, "tokens": tokens}
            shown = []
            for zeros in LAYER_ZEROS:
                weights = {kind: sparse(rows, columns, zeros, kind) for kind in ("blocks", "weights")}
                packed = {kind: pack(weight, kind) for kind, weight in weights.items()}  # type: ignore[arg-type]
                csr = weights["weights"].to_sparse_csr()
                calls: dict[str, Any] = {"dense": partial(linear, x, weights["weights"], bias)}
                calls |= {kind: partial(sparse_linear, x, matrix, bias) for kind, matrix in packed.items()}
                calls["csr"] = lambda csr=csr, x=x: (csr @ x.T).T
                with torch.inference_mode():
                    seconds = cpu_seconds(calls, rounds=9 if tokens > 16 else 101, warmup=2)
                rate = {kind: 2e-9 * tokens * packed[kind].value.numel() / seconds[kind] for kind in packed}
                row[f"{zeros:.0%}"] = {
                    "speed_up": {name: seconds["dense"] / seconds[name] for name in ("blocks", "weights", "csr")},
                    "gflops": rate | {"dense": 2e-9 * tokens * rows * columns / seconds["dense"]},
                    "share_of_peak": {kind: rate[kind] / top for kind in rate},
                }
                ratios = [f"{seconds['dense'] / seconds[name]:.2f}" for name in ("blocks", "weights", "csr")]
                shown.append(f"{zeros:.0%} " + "/".join(ratios) + f" ({rate['blocks'] / top:.0%})")
            print(f"  {rows:4} x {columns:4}, {tokens:3} tokens  blocks/weights/CSR: " + "  ".join(shown), flush=True)
            found.append(row)
    return found


def masked(model: nn.Module, kind: str, zeros: float) -> nn.Module:
    """A copy whose encoder linears are sparse; nothing but time depends on which weights are left."""
    made = copy.deepcopy(model)
    for name, module in made.named_modules():
        if isinstance(module, nn.Linear) and "encoder" in name:
            with torch.no_grad():
                module.weight.copy_(sparse(*module.weight.shape, zeros, kind))
    return made


class CsrLinear(nn.Module):
    """A linear layer on torch's own sparse product."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight.detach().to_sparse_csr(), linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W' + b."""
        rows = x.reshape(-1, x.shape[-1])
        return torch.addmm(self.bias[:, None], self.weight, rows.T).T.reshape(*x.shape[:-1], -1)


def on_csr(model: nn.Module) -> nn.Module:
    """A copy whose encoder linears are torch's CSR matrices."""
    made = copy.deepcopy(model)
    for name, module in list(made.named_modules()):
        if isinstance(module, nn.Linear) and "encoder" in name:
            owner, _, attribute = name.rpartition(".")
            setattr(made.get_submodule(owner), attribute, CsrLinear(module))
    return made


def with_onnx(models: dict[str, nn.Module], folder: Path) -> dict[str, Any]:
    """Calls of the dense model's ONNX exports; int8 twice as it is used, per channel."""
    from dsee.runtime import OnnxModel

    made = {}
    for precision in ("fp32", "int8"):
        dsee.export_onnx(models["dense"], folder / precision, quantize=None if precision == "fp32" else "int8")
        made[f"ONNX {precision}"] = OnnxModel(folder / precision, threads=1)
    return made


def remember(row: dict[str, Any]) -> None:
    """Keep a finished row at once, in place of an older one of the same size."""
    figures = stored()
    same = ("shape", "batch", "sequence")
    rows = [old for old in figures.get("models", []) if any(old[key] != row[key] for key in same)] + [row]
    order = list(SHAPES)
    figures["models"] = sorted(rows, key=lambda r: (order.index(r["shape"]), r["batch"] * r["sequence"], r["sequence"]))
    keep(file_name(), figures)


def file_name() -> str:
    """One file for each instruction set: machines do not mix."""
    return f"kernels-{library().path}"


def stored() -> dict[str, Any]:
    """What is kept already."""
    kept = RESULTS / f"{file_name()}.json"
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    return found


def whole(shape: str, onnx: bool, sizes: list[tuple[int, int]], bursts: int | None) -> None:
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {"dense": BertForSequenceClassification(config(shape)).eval()}
    for kind, zeros in MODELS:
        models[f"{kind} {zeros:.0%}"] = masked(models["dense"], kind, zeros)
    both = copy.deepcopy(models["dense"])
    dsee.prune(both, dsee.Heads(0.25, score="random"), dsee.Neurons(0.4, score="random"))
    models["25/40 cut"] = copy.deepcopy(both)
    models["25/40 cut, blocks 50%"] = masked(both, "blocks", 0.5)
    models["int8"] = copy.deepcopy(models["dense"])
    models["int8, 4x4 blocks 70%"] = masked(models["dense"], "4x4", 0.7)
    models["torch CSR 70%"] = on_csr(models["weights 70%"])
    print(f"\n{shape}, whole model, one thread; speed-up over dense PyTorch fp32", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        exported = with_onnx(models, Path(folder)) if onnx else {}
        for batch, sequence in sizes:
            inputs = sample_inputs(models["dense"], batch, sequence)
            # chosen by one sentence of that length: more sentences would take minutes and choose the same
            one = sample_inputs(models["dense"], 1, sequence)
            chosen = {
                name: dsee.optimize(model, one, rounds=3, int8=name.startswith("int8"))
                for name, model in models.items()
                if name != "dense" and "CSR" not in name
            }
            calls: dict[str, Any] = {name: partial(model, **inputs) for name, model in models.items()}
            calls |= {name: partial(model.run, model.sample(batch, sequence)) for name, model in exported.items()}
            rounds = bursts or (15 if batch * sequence <= 128 and shape == "MiniLM-L6" else 6)
            with torch.inference_mode():
                seconds, cold, least = in_turns(calls, rounds)
            ratios = {name: seconds["dense"] / seconds[name] for name in calls}
            first = {name: cold["dense"] / cold[name] for name in calls}
            remember(
                {"shape": shape, "batch": batch, "sequence": sequence, "dense_ms": 1e3 * seconds["dense"]}
                | ratios
                | {"cold": first, "least": {name: least["dense"] / least[name] for name in calls}}
            )
            shown = "  ".join(
                f"{name} {ratio:.2f} ({first[name]:.2f})" for name, ratio in ratios.items() if name != "dense"
            )
            print(f"  {batch:2} x {sequence:3}, dense {1e3 * seconds['dense']:7.1f} ms:  {shown}", flush=True)
            for choices in chosen.values():
                choices.undo()


def threads() -> list[dict[str, Any]]:
    """Two threads, as wall time, for information: on a shared machine it says little."""
    found = []
    print("\ntwo threads, wall time, 1 x 128 tokens; time of one thread over time of two")
    for shape in SHAPES:
        torch.manual_seed(0)
        dense = BertForSequenceClassification(config(shape)).eval()
        models = {"dense": dense, "blocks 70%": masked(dense, "blocks", 0.7)}
        inputs = sample_inputs(dense, 1, 128)
        dsee.optimize(models["blocks 70%"], inputs, rounds=3)
        wall: dict[str, list[float]] = {}
        for _ in range(15):
            for name, model in models.items():
                for count in (1, 2):
                    torch.set_num_threads(count)
                    start = time.perf_counter()
                    with torch.inference_mode():
                        model(**inputs)
                    wall.setdefault(f"{name}, {count}", []).append(time.perf_counter() - start)
        torch.set_num_threads(1)
        row = {name: min(wall[f"{name}, 1"]) / min(wall[f"{name}, 2"]) for name in models}
        found.append({"shape": shape} | row)
        print(f"  {shape}: " + "  ".join(f"{name} {ratio:.2f}" for name, ratio in row.items()), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="layers, models, threads; default all")
    parser.add_argument("--onnx", action="store_true", help="ONNX Runtime beside the models")
    parser.add_argument("--shape", choices=list(SHAPES), help="one shape only")
    parser.add_argument("--sizes", nargs="+", help="sentences x tokens, such as 8x128")
    parser.add_argument("--rounds", type=int, help="bursts of each model; a large one takes a minute for all of them")
    options = parser.parse_args()
    given = [(int(batch), int(sequence)) for batch, sequence in (size.split("x") for size in options.sizes or ())]
    torch.set_num_threads(1)
    wanted = options.parts or ["layers", "models", "threads"]
    top = peak()
    figures: dict[str, Any] = {"path": library().path, "torch": torch.__version__}
    print(f"kernels: {library().path}; peak of this core {top:.0f} GFLOP/s")
    if "layers" in wanted:
        figures |= {"layers": layers(top), "peak_gflops": top}
    if "threads" in wanted:
        figures["threads"] = threads()
    # parts that were not run now stay as they were
    keep(file_name(), stored() | figures)
    if "models" in wanted:
        for shape in [options.shape] if options.shape else list(SHAPES):
            whole(shape, options.onnx, given or BATCHES[shape], options.rounds)
    print(json.dumps({"written": f"benchmarks/results/{file_name()}.json"}))


if __name__ == "__main__":
    main()
