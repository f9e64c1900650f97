"""Checkpoints of an imagined run: saved, found, listed, and the ways in which they are damaged."""

import json
from pathlib import Path

import torch

from maskdm.training.checkpoints.fingerprint import digest
from maskdm.training.checkpoints.store import METADATA, TENSORS, CheckpointStore, Name


def run(name="run", after=0):
    """Return the fingerprints of a run that leaves the common trunk after step ``after``."""
    return lambda step: digest([name if step > after else "trunk", step])


def store(root, fingerprints=None, remote=None):
    """Return an open store of such a run."""
    remote = str(remote) if remote else None
    opened = CheckpointStore(root, "pretrain", fingerprints or run(), remote)
    opened.open()
    return opened


def tensors(seed):
    """Return the kinds of tensors that a run saves, with the values that are easily lost."""
    odd = [0x7FC00001, -0x003EDCBB, 0x7F800001, 0x7F800000, -0x80000000, 1, -0x7FFFFFFF]
    generator = torch.Generator().manual_seed(seed)
    return {
        "raw.weight": torch.randn(3, 5, generator=generator),
        "step.weight": torch.tensor(float(seed)),
        "history.losses": torch.tensor(odd, dtype=torch.int32).view(torch.float32),
        "history.norms": torch.empty(0),
    }


def bits(found):
    """Return what makes tensors equal bit for bit."""
    return {
        name: (tensor.dtype, tensor.shape, tensor.numpy().tobytes())
        for name, tensor in found.items()
    }


def save(where, *steps):
    """Save checkpoints after some steps."""
    for step in steps:
        where.save(step, tensors(step), {"seconds": step / 3})


def step_of(found):
    """Return the step of a checkpoint that was found, or None; it must be what was saved."""
    if found is None:
        return None
    step = found.name.step
    assert bits(found.tensors) == bits(tensors(step))
    assert (found.metadata["step"], found.metadata["seconds"]) == (step, step / 3)
    return step


def steps_in(folder, suffix=METADATA):
    """Return the steps of the checkpoints at or below a folder."""
    return sorted(Name.of(path).step for path in folder.rglob(f"*{suffix}"))


def contents(folder):
    """Return what stands in the files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def cut(path):
    """Take the last byte away."""
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 16  # a tensor's last value: the file can still be read
    path.write_bytes(content)


def _empty(path):
    path.write_bytes(b"")


def _rewrite(change):
    def rewritten(path):
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return rewritten


def _another_second(metadata):
    return metadata | {"seconds": metadata["seconds"] + 1}


def _no_checksum(metadata):
    return {key: value for key, value in metadata.items() if key != "checksum"}


DAMAGES = {
    "tensors cut": (TENSORS, cut),
    "tensors with one bit flipped": (TENSORS, _flip),
    "tensors emptied": (TENSORS, _empty),
    "tensors missing": (TENSORS, Path.unlink),
    "metadata cut": (METADATA, cut),
    "metadata with one digit changed": (METADATA, _rewrite(_another_second)),
    "metadata without checksum": (METADATA, _rewrite(_no_checksum)),
    "metadata emptied": (METADATA, _empty),
    "metadata that is a list": (METADATA, _rewrite(list)),
    "metadata that is null": (METADATA, _rewrite(lambda metadata: None)),
    "metadata that is no text": (METADATA, lambda path: path.write_bytes(b"\xff\xfe{")),
}
