"""What is in a tar shard of the WebDataset layout, found from its headers."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable
from typing import NamedTuple

from iivcl.data._container import DecodeError, decode_errors
from iivcl.data._find_videos import VIDEO_SUFFIXES

__all__ = ["TarSample", "list_samples"]


class TarSample(NamedTuple):
    """Consecutive files whose names are equal up to the first dot.

    Attributes:
        shard: Path of the archive.
        key: The common part of the names.
        files: From the rest of a name, such as ``"mp4"``, to the file's first byte and its size.
        damage: Why the archive ends here, for the stand-in of what follows; else empty.
    """

    shard: str
    key: str
    files: dict[str, tuple[int, int]]
    damage: str = ""

    @property
    def video(self) -> str | None:
        """The rest of the video's name."""
        return next((name for name in self.files if f".{name}".endswith(VIDEO_SUFFIXES)), None)

    @property
    def path(self) -> str:
        """The video's name in messages."""
        if self.damage:
            return self.shard
        return f"{self.shard}/{self.key}" + (f".{self.video}" if self.video else "")

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """Read some of the files."""
        contents = {}
        with decode_errors(self.path), open(self.shard, "rb") as archive:
            for name in names:
                start, size = self.files[name]
                archive.seek(start)
                contents[name] = archive.read(size)
                if len(contents[name]) < size:
                    raise DecodeError(f"{self.path}: the archive ends in the middle of it")
        return contents


def list_samples(shard: str) -> list[TarSample]:
    """List the samples of an archive in order, without reading the files.

    Where the archive is damaged the last entry says so, in place of what cannot be found.
    """
    samples: list[TarSample] = []
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, name = os.path.split(member.name)
                stem, _, rest = name.partition(".")
                if not member.isfile() or not stem:  # a folder; a hidden file
                    continue
                key, rest = os.path.join(folder, stem), rest.lower()
                if not samples or samples[-1].key != key or rest in samples[-1].files:
                    samples.append(TarSample(shard, key, {}))
                samples[-1].files[rest] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        cause = (isinstance(error, OSError) and error.strerror) or f"no sound tar archive: {error}"
        samples.append(TarSample(shard, "", {}, damage=cause))
    return samples
