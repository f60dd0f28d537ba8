"""What a user would pick instead of our stream, each in its own format: a torch DataLoader over Parquet,
mosaicml-streaming (MDS), litdata (its chunks), webdataset (tar), Hugging Face datasets (streamed Parquet).
`python -m tests.benchmarks.stream` runs this file.

It needs nothing of ours, only those packages, in an environment of their own: `environment` makes it. Every
worker is a process with one torch DataLoader worker, as ours has one transform actor; windows are stored as
int16, shuffled in the peer's own way, and come out as float32 batches times a scale.

    python peers.py write mds FOLDER --windows 4000 --samples 30000
    python peers.py read mds FOLDER --batch 64      # says "ready", waits for a line on stdin
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("mosaicml-streaming==0.13.0", "webdataset==1.0.2", "datasets==5.0.1", "litdata==0.2.76")
NAMES = {
    "loader": "torch DataLoader over Parquet",
    "mds": "mosaicml-streaming",
    "litdata": "litdata",
    "webdataset": "webdataset",
    "hf": "Hugging Face datasets",
}
KINDS = tuple(NAMES)
SCALE = np.float32(1e-3)
SHARD_MB = 32  # small enough that four workers find shards of their own in a corpus of some hundred MB
SHUFFLED = 512  # windows in a shuffle buffer


def drawn(windows: int, samples: int) -> Iterator[np.ndarray]:
    """Pulse-like noise, as the corpus of the benchmark has it."""
    rng = np.random.default_rng(0)
    base = (3000 * np.sin(np.arange(samples) * 0.06)).astype("<i2")
    for _ in range(windows):
        yield base + rng.integers(-200, 200, samples, dtype="<i2")


def write(kind: str, folder: str, windows: int, samples: int) -> None:
    """The corpus in the peer's own format."""
    waves = enumerate(drawn(windows, samples))
    if kind == "mds":
        from streaming import MDSWriter

        columns = {"x": f"ndarray:int16:{samples}"}
        with MDSWriter(out=folder, columns=columns, size_limit=SHARD_MB << 20) as out:
            for _, x in waves:
                out.write({"x": x})
    elif kind == "litdata":
        from litdata.streaming.writer import BinaryWriter

        Path(folder).mkdir(parents=True)
        chunks = BinaryWriter(folder, chunk_bytes=SHARD_MB << 20)
        for number, x in waves:
            chunks[number] = x
        chunks.done()
        chunks.merge()
    elif kind == "webdataset":
        import webdataset

        Path(folder).mkdir(parents=True)
        with webdataset.ShardWriter(f"{folder}/%05d.tar", maxsize=SHARD_MB << 20, verbose=0) as out:
            for number, x in waves:
                out.write({"__key__": f"{number:08d}", "x.bin": x.tobytes()})
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        Path(folder).mkdir(parents=True)
        a_shard = (SHARD_MB << 20) // (2 * samples)
        for shard in range(-(-windows // a_shard)):
            some = [x.tobytes() for _, (_, x) in zip(range(a_shard), waves, strict=False)]
            table = pa.table({"x": pa.array(some, pa.binary())})
            pq.write_table(table, f"{folder}/{shard:05d}.parquet", compression="zstd", use_dictionary=False)


def decode(raw: Any) -> np.ndarray:
    return np.frombuffer(raw, "<i2").astype(np.float32) * SCALE


def opened(kind: str, folder: str, batch: int, rank: int, world: int) -> Iterable[Any]:
    """Float32 batches of one worker, shuffled, once through the corpus."""
    from torch.utils.data import DataLoader

    if kind == "loader":
        data: Any = _rows(sorted(Path(folder).glob("*.parquet"))[rank::world])
    elif kind == "mds":
        from streaming import StreamingDataset

        class Scaled(StreamingDataset):
            def __getitem__(self, at: Any) -> Any:
                return super().__getitem__(at)["x"].astype(np.float32) * SCALE

        data = Scaled(local=folder, shuffle=True, batch_size=batch)
    elif kind == "litdata":
        import litdata

        class Chunks(litdata.StreamingDataset):
            def __getitem__(self, at: Any) -> Any:
                return np.asarray(super().__getitem__(at)).astype(np.float32) * SCALE

        data = Chunks(folder, shuffle=True, drop_last=True)
        return litdata.StreamingDataLoader(data, batch_size=batch, num_workers=1, prefetch_factor=4)
    elif kind == "webdataset":
        import webdataset

        shards = sorted(map(str, Path(folder).glob("*.tar")))
        split = webdataset.split_by_node if world > 1 else webdataset.single_node_only
        data = webdataset.WebDataset(shards, shardshuffle=len(shards), nodesplitter=split, empty_check=False)
        data = data.shuffle(SHUFFLED).map(lambda sample: decode(sample["x.bin"]))
    else:
        import datasets
        from datasets.distributed import split_dataset_by_node

        shards = sorted(map(str, Path(folder).glob("*.parquet")))
        data = datasets.load_dataset("parquet", data_files=shards, split="train", streaming=True)
        data = data.shuffle(seed=0, buffer_size=SHUFFLED)
        if world > 1:
            data = split_dataset_by_node(data, rank=rank, world_size=world)
        data = data.map(lambda row: {"x": decode(row["x"])}).with_format("torch")
    return DataLoader(data, batch_size=batch, num_workers=1, prefetch_factor=4, drop_last=True)


def _rows(files: list[Path]) -> Iterable[Any]:
    """Windows of Parquet files, files and each one's rows in drawn order."""
    import pyarrow.parquet as pq
    from torch.utils.data import IterableDataset

    class Rows(IterableDataset):
        def __iter__(self) -> Iterator[np.ndarray]:
            rng = np.random.default_rng(0)
            for number in rng.permutation(len(files)):
                column = pq.read_table(files[number])["x"]
                for row in rng.permutation(len(column)).tolist():
                    yield decode(column[row].as_buffer())

    return Rows()


def read(kind: str, folder: str, batch: int) -> None:
    """When each batch came, as JSON; starts when a line comes in."""
    import torch

    torch.set_num_threads(1)
    if kind == "mds":
        import streaming  # noqa: F401
    elif kind == "litdata":
        import litdata  # noqa: F401
        import torch.distributed

        torch.distributed.init_process_group("gloo")  # it asks torch how many ranks there are
    elif kind == "webdataset":
        import webdataset  # noqa: F401
    elif kind == "hf":
        import datasets  # noqa: F401
    else:
        import pyarrow.parquet  # noqa: F401
        import torch.utils.data
    print("ready", flush=True)
    sys.stdin.readline()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    came = []
    for given in opened(kind, folder, batch, rank, world):
        x = given["x"] if isinstance(given, dict) else given
        assert x.dtype == torch.float32, x.dtype
        came.append(time.time())
    print("came " + json.dumps(came), flush=True)
    os._exit(0)  # peers leave threads and processes behind that would hold this one up


def environment(folder: Path) -> str:
    """The Python that has the peers, made in `folder` once."""
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run(
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True
        )
        command = [uv, "pip", "install", "--quiet", "--python", str(python), *PACKAGES]
        subprocess.run(command, check=True)
        (folder / ".ready").touch()
    return str(python)


def measure(python: str, kind: str, folder: str, batch: int, workers: int) -> tuple[float, float]:
    """(batches a second over all workers after the first of each, seconds to the first of all of them)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(workers):
        about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers}
        about |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(
            subprocess.Popen(
                [python, __file__, "read", kind, folder, "--batch", str(batch)],
                env=os.environ | {name: str(value) for name, value in about.items()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("ready"):
            if process.poll() is not None:
                raise SystemExit(process.stderr.read() if process.stderr else "")
    began, came = time.time(), []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        told, wrong = process.communicate()
        lines = [line for line in told.splitlines() if line.startswith("came ")]
        if not lines:
            raise SystemExit(f"{NAMES[kind]}: {wrong[-2000:]}")
        came.append(json.loads(lines[0].removeprefix("came ")))
    first, last = max(times[0] for times in came), max(times[-1] for times in came)
    return sum(len(times) - 1 for times in came) / (last - first), first - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("write", "read"))
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder")
    parser.add_argument("--windows", type=int, default=4000)
    parser.add_argument("--samples", type=int, default=30000)
    parser.add_argument("--batch", type=int, default=64, help="a worker's")
    given = parser.parse_args()
    if given.what == "write":
        write(given.kind, given.folder, given.windows, given.samples)
    else:
        read(given.kind, given.folder, given.batch)


if __name__ == "__main__":
    main()
