"""Shards on object storage: what reads them fastest, what batches cost: reports/shards.json.

``python -m benchmarks.speed.shards`` writes it (two minutes). The server is moto, an S3-compatible
one in Python, in a process of its own on this machine: it bounds all clients alike, and says
nothing of a network. Clients that are not installed are left out.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import Request, urlopen

import numpy as np
import typer

from benchmarks.speed.commands import ROOT
from benchmarks.speed.machine import machine, versions
from maskdm.data.prepared import BLOCK_BYTES, block_of
from maskdm.diffusion.masking import MaskParams, make_mask
from maskdm.runtime import command
from maskdm.runtime.environment import SHARDS_CACHE
from maskdm.runtime.files import write_json
from maskdm.runtime.location import Location
from maskdm.runtime.shard_sender import sending, usable
from maskdm.runtime.sharded import FETCHERS, Images, ShardedArray, Shards, Window
from maskdm.training.batches import Batches
from maskdm.training.schedule import Leg, Schedule

REPORT = ROOT / "reports/shards.json"
BUCKET, FOLDER = "bucket", "images"
SHAPE = (32, 32, 3)
SHARDS = 32
ROUNDS = 3  # of each measurement, in turn; the median counts
BATCH = 64
TOGETHER = 8  # shards in a window
SERVER = (
    "from moto.server import ThreadedMotoServer\n"
    "import logging, sys\n"
    "logging.getLogger('werkzeug').setLevel(logging.ERROR)\n"
    "server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)\n"
    "server.start()\n"
    "print('{}:{}'.format(*server.get_host_and_port()), flush=True)\n"
    "sys.stdin.read()\n"
)
Read = Callable[[str], bytes]  # from a shard's name to its bytes


def main() -> None:
    """Measure, and write reports/shards.json."""
    typer.echo("reading shards from a local server", err=True)
    with TemporaryDirectory() as folder, serving():
        os.environ[SHARDS_CACHE.name] = f"{folder}/cache"
        images = np.random.default_rng(0).integers(
            0, 256, (SHARDS * block_of(SHAPE), *SHAPE), dtype=np.uint8
        )
        url = f"s3://{BUCKET}/{FOLDER}"
        usable(url)  # connections are made, modules loaded
        start = time.perf_counter()
        with sending(url, block_of(SHAPE) * int(np.prod(SHAPE))) as sender:
            for image in images:
                sender.append(image.tobytes())
            names = sender.finish()
        written = images.nbytes / 2**20 / (time.perf_counter() - start)
        report = {
            "machine": machine(),
            "versions": versions() | {name: _version(name) for name in (*CLIENTS, "moto")},
            "shards": SHARDS,
            "MiB_each": round(BLOCK_BYTES / 2**20, 1),
            "threads": FETCHERS,
            "MiB_per_second_written": round(written),
            "MiB_per_second_read": read(names),
            "batches_per_second": batches(images, Shards(url, block_of(SHAPE), names), folder),
        }
    write_json(REPORT, report)
    print(report)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@contextmanager
def serving() -> Iterator[None]:
    """Run a server with an empty bucket, and set the environment in which clients find it."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    try:
        address = f"http://{process.stdout.readline().strip()}"
        urlopen(Request(f"{address}/{BUCKET}", method="PUT")).close()
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": address,
        }
        yield
    finally:
        process.stdin.close()
        process.wait()


# --- clients ---


def _fsspec() -> Read:
    """Read as maskdm does."""
    return Location(f"s3://{BUCKET}/{FOLDER}", made=False).read


def _boto3() -> Read:
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(max_pool_connections=FETCHERS))

    def read(name: str) -> bytes:
        found = client.get_object(Bucket=BUCKET, Key=f"{FOLDER}/{name}")
        return bytes(found["Body"].read())

    return read


def _obstore() -> Read:
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        prefix=FOLDER,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        client_options={"allow_http": True},
    )
    return lambda name: bytes(store.get(name).bytes())


CLIENTS: dict[str, Callable[[], Read]] = {"s3fs": _fsspec, "boto3": _boto3, "obstore": _obstore}


def read(names: list[str]) -> dict[str, int]:
    """Return MiB a second by client, all shards read by as many threads as maskdm has."""
    clients = {name: make() for name, make in CLIENTS.items() if _version(name)}
    for client in clients.values():  # connections are made, modules loaded
        client(names[0])

    def once(client: Read) -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(FETCHERS) as threads:
            total = sum(map(len, threads.map(client, names)))
        return total / 2**20 / (time.perf_counter() - start)

    found: dict[str, list[float]] = {name: [] for name in clients}
    for _ in range(ROUNDS):
        for name, client in clients.items():
            found[name].append(once(client))
    return {name: round(float(np.median(values))) for name, values in found.items()}


# --- batches ---


def batches(images: np.ndarray, shards: Shards, folder: str) -> dict[str, int]:
    """Return batches a second through one epoch: from a file, from the cache, from the server."""
    np.save(f"{folder}/images.npy", images)
    mapped = np.load(f"{folder}/images.npy", mmap_mode="r")
    mask = make_mask(MaskParams(strategy="block", rate=0.75, block_size=2), 8)
    steps = len(images) // BATCH
    schedule = Schedule((Leg(mask, steps, BATCH, 1.0, 0),), steps)
    window = Window(TOGETHER * shards.length, shards.length)

    def once(source: Images, shuffled: Window | None) -> float:
        made = Batches(source, schedule, 4, 0.5, 0, "bench", window=shuffled)
        start = time.perf_counter()
        for step in range(steps):
            made.at(step)
        return steps / (time.perf_counter() - start)

    def empty() -> float:
        for path in Path(f"{folder}/cache").glob("*"):
            path.unlink()
        return once(ShardedArray(shards, images.shape), window)

    ways: dict[str, Callable[[], float]] = {
        "file": partial(once, mapped, None),
        "file, in windows": partial(once, mapped, window),
        "server": empty,
        "cache": lambda: once(ShardedArray(shards, images.shape), window),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            found[name].append(way())
    return {name: round(float(np.median(values))) for name, values in found.items()}


if __name__ == "__main__":
    command.run(main)
