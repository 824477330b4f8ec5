"""Reading of real videos."""

from ._container import DecodeError
from ._dataset import VideoClips, collate_clips
from ._decode import read_clips
from ._failures import Failure
from ._manifest import Manifest, read_manifest
from ._probe import VideoInfo, probe
from ._sampling import clip_indices, random_clip_starts, uniform_clip_starts
from ._synthetic import make_synthetic_videos

__all__ = [
    "DecodeError",
    "Failure",
    "Manifest",
    "VideoClips",
    "VideoInfo",
    "clip_indices",
    "collate_clips",
    "make_synthetic_videos",
    "probe",
    "random_clip_starts",
    "read_clips",
    "read_manifest",
    "uniform_clip_starts",
]
