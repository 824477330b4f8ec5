"""Reading of real videos."""

from ._container import DecodeError
from ._dataset import VideoClips
from ._decode import read_clips
from ._probe import VideoInfo, probe
from ._sampling import clip_indices, random_clip_starts, uniform_clip_starts
from ._synthetic import make_synthetic_videos

__all__ = [
    "DecodeError",
    "VideoClips",
    "VideoInfo",
    "clip_indices",
    "make_synthetic_videos",
    "probe",
    "random_clip_starts",
    "read_clips",
    "uniform_clip_starts",
]
