#!/bin/sh
# litdata: under torchrun, before torch.distributed is initialised, every rank reads the same share of the data.
# One would guess: ranks read shares of their own (as mosaicml-streaming's do, which takes RANK), or all read all.
# litdata 0.2.76 takes WORLD_SIZE, which torchrun sets, and GLOBAL_RANK, which it does not: each process counts as
# rank 0 of 2, and half of the items reaches nobody, without a word. After init_process_group shares are right.
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check litdata==0.2.76 torch==2.13.0 'numpy<3'
cd "$work"
cat > read.py <<'PY'
import json, os, sys

import torch.distributed as dist
from litdata import StreamingDataset

if sys.argv[1] == "init":
    dist.init_process_group("gloo")
found = sorted(int(x[0]) for x in StreamingDataset("chunks", shuffle=False))
with open(f"{sys.argv[1]}-{os.environ['RANK']}.json", "w") as file:
    json.dump(found, file)
PY
"$work/venv/bin/python" - <<'PY'
import json
import os
import subprocess
import sys
from importlib.metadata import version

import numpy as np
from litdata.streaming.writer import BinaryWriter

os.mkdir("chunks")
out = BinaryWriter("chunks", chunk_size=2)
for number in range(8):
    out[number] = np.full(4, number, np.int16)
out.done()
out.merge()
seen = {}
for how in ("plain", "init"):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "read.py", how]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    seen[how] = [json.load(open(f"{how}-{rank}.json")) for rank in range(2)]
    print(f"litdata {version('litdata')}, {how}: rank 0 read {seen[how][0]}, rank 1 {seen[how][1]}")
assert seen["plain"][0] == seen["plain"][1] and len(seen["plain"][0]) == 4, seen
assert sorted(seen["init"][0] + seen["init"][1]) == list(range(8)), seen
PY
