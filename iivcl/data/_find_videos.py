"""The search for videos below a folder."""

from __future__ import annotations

import logging
import os
from collections import deque

from iivcl.data._container import StrPath
from iivcl.data._pictures import IMAGE_SUFFIXES, natural_key

__all__ = ["VIDEO_SUFFIXES", "find_videos"]

_logger = logging.getLogger("iivcl.data")
# fmt: off
VIDEO_SUFFIXES = (
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".ogv", ".ts", ".webm", ".wmv",
)
# fmt: on


def find_videos(root: StrPath) -> list[str]:
    """Find the videos of a folder at every depth: files by their suffix, and folders of images.

    A folder counts as a video when it holds images and neither video files nor folders. Names
    that begin with a dot are passed over. Links are followed; a folder that can be reached in
    several ways is searched once, under its own name where that lies below ``root``, so that no
    video of it is listed twice. Folders that may not be read are passed over with a warning.

    Args:
        root: Folder to search.

    Returns:
        Paths in natural order: ``2.mp4`` before ``10.mp4``; none when there are no videos.

    Raises:
        FileNotFoundError: The folder does not exist.

    Example:
        >>> import pathlib, tempfile
        >>> from iivcl.data import find_videos
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> (root / "10.mp4").touch(), (root / "2.avi").touch(), (root / "notes.txt").touch()
        (None, None, None)
        >>> [pathlib.Path(path).name for path in find_videos(root)]
        ['2.avi', '10.mp4']
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f"`root`: no such folder: {os.fspath(root)}")
    found: list[str] = []
    searched: set[str] = set()
    tops = deque([os.fspath(root)])  # links come after everything that lies below `root` itself
    while tops:
        for folder, subfolders, names in os.walk(tops.popleft(), onerror=_warn):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            if os.path.realpath(folder) in searched:
                subfolders.clear()
                continue
            searched.add(os.path.realpath(folder))
            below = [os.path.join(folder, name) for name in subfolders]
            tops += [path for path in below if os.path.islink(path)]
            names = [name for name in names if not name.startswith(".")]
            videos = [name for name in names if name.lower().endswith(VIDEO_SUFFIXES)]
            found += [os.path.join(folder, name) for name in videos]
            images = any(name.lower().endswith(IMAGE_SUFFIXES) for name in names)
            if images and not videos and not subfolders:
                found.append(folder)
    return sorted(found, key=natural_key)


def _warn(error: OSError) -> None:
    _logger.warning("%s: %s; the folder is passed over", error.filename, error.strerror)
