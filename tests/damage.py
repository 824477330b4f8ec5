"""Files damaged at random, read in a process of their own that may crash, hang or leak."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import random
from pathlib import Path
from typing import NamedTuple

from iivcl.data import DecodeError, probe, read_clips


class Resources(NamedTuple):
    """What a process holds."""

    megabytes: float
    open_files: int


class Outcome(NamedTuple):
    """What became of the damaged files, and what the process held midway and at the end."""

    errors: dict[str, str | None]
    midway: Resources
    end: Resources


def read_damaged(sources: list[Path], folder: Path, cases: int, seed: int) -> Outcome:
    """Damage the files in turn, and read the first and last frame of each result."""
    chance = random.Random(seed)
    contents = itertools.cycle([(source.suffix, source.read_bytes()) for source in sources])
    errors: dict[str, str | None] = {}
    held = []
    for case in range(1, cases + 1):
        suffix, content = next(contents)
        path = folder / f"case {case}{suffix}"
        path.write_bytes(damage(content, chance))
        errors[str(path)] = read_error(path)
        path.unlink()
        if case in (cases // 2, cases):
            held.append(resources())
    return Outcome(errors, *held)


def damage(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    # A single byte too many breaks all offsets of an mp4, so that half the files keep their length.
    kinds = chance.choice([["flip", "overwrite"], ["flip", "cut", "splice"]])
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(len(data))
        length = chance.randint(1, 40)
        kind = chance.choice(kinds)
        if kind == "flip":
            data[place] ^= 1 << chance.randrange(8)
        elif kind == "overwrite":
            data[place : place + length] = chance.randbytes(len(data[place : place + length]))
        elif kind == "cut":
            del data[place : place + length]
        else:
            data[place:place] = chance.randbytes(length)
    return bytes(data)


def read_error(path: Path) -> str | None:
    try:
        last = probe(path).num_frames - 1
        clips = read_clips(path, [[0, last]], short_side=16)
    except DecodeError as error:
        return str(error)
    assert clips.shape[:3] == (1, 3, 2)
    return None


def resources() -> Resources:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free but kept for later is no leak
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return Resources(megabytes, len(os.listdir("/proc/self/fd")))
