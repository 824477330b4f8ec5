"""What is in a tar shard of the WebDataset layout, found from its headers."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable
from typing import Literal, NamedTuple

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
        files: From the rest of a name, such as ``"mp4"``, to the file's first byte and its size.
        lost: Names that belong here, or nowhere, and cannot be read, with the reason.
        damage: Why the archive ends here, for the stand-in of what follows; else empty.
    """

    shard: str
    key: str
    files: dict[str, tuple[int, int]]
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
                start, size = self.files[name]
                archive.seek(start)
                contents[name] = archive.read(size)
                if len(contents[name]) < size:
                    raise DecodeError(f"{self.path}: the archive ends in the middle of it")
        return contents


def list_samples(shard: str, name_end: NameEnd = "first_dot") -> list[TarSample]:
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
                if member.isreg() or member.islnk() or member.issym():
                    members.append((member.name, content))
    except (tarfile.TarError, OSError) as error:
        damage = (isinstance(error, OSError) and error.strerror) or f"no sound tar archive: {error}"

    samples: list[TarSample] = []
    homeless: list[tuple[str, str]] = []  # what belongs to no sample is told with the next one
    for path, content in members:
        folder, name = os.path.split(path)
        stem, dot, rest = name.partition(".") if name_end == "first_dot" else name.rpartition(".")
        if name.startswith("."):
            continue
        if not dot:
            homeless.append((path, "a name without a dot belongs to no sample"))
            continue
        key, rest = os.path.join(folder, stem), rest.lower()
        if not samples or samples[-1].key != key:
            samples.append(TarSample(shard, key, {}, homeless))
            homeless = []
        files, lost = samples[-1].files, samples[-1].lost
        place = _locate(content, by_name)
        if isinstance(place, str):
            lost.append((path, place))
            continue
        if rest in files:
            lost.append((path, f"two files of the sample end in .{rest}; the last is read"))
        files[rest] = place
    if samples:
        samples[-1].lost.extend(homeless)
    elif homeless:
        damage = damage or f"no name in it has a dot, such as {homeless[0][0]!r}"
    if damage:
        samples.append(TarSample(shard, "", {}, [], damage))
    return samples


def _locate(file: tarfile.TarInfo, by_name: dict[str, tarfile.TarInfo]) -> tuple[int, int] | str:
    """Follow symbolic links to a file's first byte and size, or say why it cannot be read."""
    target = file
    for _ in range(_MOST_LINKS):
        if not target.issym():
            break
        name = os.path.join(os.path.dirname(target.name), target.linkname)
        target = by_name.get(os.path.normpath(name), target)
    if not target.isreg():
        return f"a link to {file.linkname}, which is no file of the archive"
    if target.issparse():
        return "it is stored with holes; pack it without --sparse"
    return target.offset_data, target.size
