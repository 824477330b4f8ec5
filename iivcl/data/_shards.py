"""What is in a tar shard of the WebDataset layout, found from its headers."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from iivcl.data._container import DecodeError, decode_errors
from iivcl.data._find_videos import VIDEO_SUFFIXES

__all__ = ["NameEnd", "TarSample", "list_samples"]

NameEnd = Literal["first_dot", "last_dot"]
_MOST_LINKS = 40  # that are followed to one file; as many as Linux follows


class TarSample(NamedTuple):
    """Consecutive files whose names are equal up to a dot.

    Attributes:
        shard: Path of the archive.
        key: The common part of the names.
        files: From the rest of a name, such as ``"mp4"``, to where the archive holds the content.
        lost: Names that belong here, or nowhere, and cannot be read, with the reason.
        damage: Why the archive ends here, for the stand-in of what follows; else empty.
    """

    shard: str
    key: str
    files: dict[str, tarfile.TarInfo]
    lost: list[tuple[str, str]]
    damage: str = ""

    @property
    def videos(self) -> list[str]:
        """The rests of the videos' names, of which the first is read."""
        return [name for name in self.files if f".{name}".endswith(VIDEO_SUFFIXES)]

    @property
    def unread(self) -> list[tuple[str, str]]:
        """Names that are lost where the videos alone are read, with the reason."""
        cause = 'the sample has another video, which is read; `name_end="last_dot"` parts them'
        return self.lost + [(f"{self.key}.{name}", cause) for name in self.videos[1:]]

    @property
    def path(self) -> str:
        """The video's name in messages."""
        name = f"{self.shard}/{self.key}" if self.key else self.shard
        return f"{name}.{self.videos[0]}" if self.videos else name

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """Read some of the files."""
        contents = {}
        with decode_errors(self.path), open(self.shard, "rb") as archive:
            for name in names:
                file = self.files[name]
                parts: Any = [(0, file.size)] if file.sparse is None else file.sparse
                content = memoryview(bytearray(file.size))  # zeros where the file has holes
                archive.seek(file.offset_data)
                for start, size in parts:
                    if archive.readinto(content[start : start + size]) < size:
                        raise DecodeError(f"{self.path}: the archive ends in the middle of it")
                contents[name] = bytes(content)
        return contents


def list_samples(shard: str, name_end: NameEnd) -> list[TarSample]:
    """List the samples of an archive in order, without reading the files.

    Where the archive is damaged the last entry says so, in place of what cannot be found.

    Args:
        shard: Path of the archive.
        name_end: Which dot of a name ends the part that the files of a sample have in common.
    """
    members: list[tuple[str, tarfile.TarInfo]] = []
    by_name: dict[str, tarfile.TarInfo] = {}
    damage = ""
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                content = member  # a hard link is another name of what came before it
                if member.islnk():
                    content = by_name.get(os.path.normpath(member.linkname), member)
                by_name[os.path.normpath(member.name)] = content
                members.append((member.name, content))
    except (tarfile.TarError, OSError) as error:
        damage = (isinstance(error, OSError) and error.strerror) or f"no sound tar archive: {error}"

    samples: list[TarSample] = []
    lost: list[tuple[str, str]] = []  # of the last sample; of the first one until there is one
    for path, content in members:
        folder, name = os.path.split(path)
        stem, dot, rest = name.partition(".") if name_end == "first_dot" else name.rpartition(".")
        if content.isdir() or name.startswith("."):
            continue
        if not dot:
            lost.append((path, "a name without a dot belongs to no sample"))
            continue
        key, rest = os.path.join(folder, stem), rest.lower()
        if not samples or samples[-1].key != key:
            lost = [] if samples else lost
            samples.append(TarSample(shard, key, {}, lost))
        file = _follow(content, by_name)
        if not file.isreg():
            lost.append((path, f"a link to {content.linkname}, which is no file of the archive"))
            continue
        if rest in samples[-1].files:
            lost.append((path, f"two files of the sample end in .{rest}; the last is read"))
        samples[-1].files[rest] = file
    if lost and not samples:
        damage = damage or f"no name in it has a dot, such as {lost[0][0]!r}"
    return [*samples, TarSample(shard, "", {}, [], damage)] if damage else samples


def _follow(file: tarfile.TarInfo, by_name: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo:
    """Follow symbolic links within the archive as far as they lead."""
    for _ in range(_MOST_LINKS):
        if not file.issym():
            break
        target = os.path.join(os.path.dirname(file.name), file.linkname)
        file = by_name.get(os.path.normpath(target), file)
    return file
