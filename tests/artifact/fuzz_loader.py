"""Damages folders at random, makes their manifests agree with the damage, and loads them under a memory limit.

``python fuzz_loader.py FOLDER SEED COUNT``: a child of test_artifact_fuzz.py, so that a crash, a hang or a grab for
memory ends this process and no other. It prints one line of JSON: how often which error came.
"""

from __future__ import annotations

import collections
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import torch
from artifact_tools import rehash
from write_golden import bert

import dsee
from dsee.artifact import read_manifest

#: What one load may take beyond what the process has at the start.
MEMORY, SECONDS = 1 << 30, 60
EXTREMES = [0, 1, -1, 7, 2**31, 2**53, 10**12, 10**30, 1e308, -1.5, True, None, "", "x", [], {}, [[]], {"a": 1}]


def places(value, path=()):
    """Paths of everything inside some JSON."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for i, one in enumerate(value):
            yield from places(one, (*path, i))


def mutate(content, draw):
    """Change, drop or add one thing somewhere."""
    path = draw.choice([p for p in places(content) if p] or [()])
    if not path:
        return draw.choice(EXTREMES)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    kind = draw.randrange(5)
    if kind == 0:
        del holder[path[-1]]
    elif kind == 1 and isinstance(holder[path[-1]], int) and not isinstance(holder[path[-1]], bool):
        holder[path[-1]] *= draw.choice([2, -1, 1000, 10**9])
    elif kind == 2 and isinstance(holder, dict):
        holder[str(path[-1]) + "x"] = holder.pop(path[-1])
    else:
        holder[path[-1]] = draw.choice(EXTREMES)
    return content


def spoil_bytes(data, draw):
    data = bytearray(data)
    kind = draw.randrange(4)
    if kind == 0:
        return bytes(data[: draw.randrange(len(data) + 1)])
    if kind == 1:
        return bytes(data) + bytes(draw.randrange(1, 50))
    for _ in range(draw.choice([1, 1, 3, 40])):
        if data:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def spoil_weights(data, draw):
    """The format: length of the header in eight bytes, the header as JSON, the numbers."""
    size = int.from_bytes(data[:8], "little")
    kind = draw.randrange(3)
    if kind == 0:
        claimed = draw.choice([0, 1, size - 1, size + 1, len(data), 10**8 - 1, 10**8 + 1, 2**40, 2**63, 2**64 - 1])
        return claimed.to_bytes(8, "little") + data[8:]
    if kind == 1:
        header = json.dumps(mutate(json.loads(data[8 : 8 + size]), draw)).encode()
        return len(header).to_bytes(8, "little") + header + data[8 + size :]
    return spoil_bytes(data, draw)


def spoil(folder, draw):
    name = draw.choice(sorted(read_manifest(folder).files))
    path = folder / name
    data = path.read_bytes()
    if name.endswith(".safetensors"):
        data = spoil_weights(data, draw)
    elif name.endswith(".json") and draw.random() < 0.8:
        data = json.dumps(mutate(json.loads(data), draw)).encode()
    else:
        data = spoil_bytes(data, draw)
    path.write_bytes(data)
    return name


def attempt(folder):
    base = {"base": bert()} if read_manifest(folder).kind == "update" else {}
    try:
        dsee.load(folder, **base)
    except dsee.DseeError as error:
        return type(error).__name__
    return "loaded"


def main():
    source, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    # what a damaged file makes other libraries remark is no finding; exceptions are
    warnings.filterwarnings("ignore")
    draw, found = random.Random(seed), collections.Counter()
    # once, so that what is imported late is not taken for a grab
    attempt(source)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(count):
            folder = Path(shutil.copytree(source, Path(scratch) / str(i)))
            state = draw.getstate()[1][:2]
            name = spoil(folder, draw)
            rehash(folder)
            signal.alarm(SECONDS)
            try:
                found[attempt(folder)] += 1
            except BaseException:  # noqa: BLE001 - whatever it is, it is a finding
                print(f"seed {seed}, case {i} ({state}): {name}", file=sys.stderr)
                traceback.print_exc()
                sys.exit(1)
            signal.alarm(0)
            shutil.rmtree(folder)
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
