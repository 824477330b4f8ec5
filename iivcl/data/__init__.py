"""Reading of real videos."""

from ._container import DecodeError
from ._dataset import VideoClips, collate_clips
from ._decode import read_clips
from ._failures import Failure
from ._manifest import Manifest, find_videos, read_manifest
from ._probe import VideoInfo, probe
from ._sampling import clip_indices, random_clip_starts, uniform_clip_starts
from ._split_lists import read_hmdb51_split, read_ucf101_split, ucf101_ids
from ._split_tables import read_diving48_split, read_kinetics_split, read_ssv2_split
from ._synthetic import make_synthetic_videos
from ._tar_clips import TarClips

__all__ = [
    "DecodeError",
    "Failure",
    "Manifest",
    "TarClips",
    "VideoClips",
    "VideoInfo",
    "clip_indices",
    "collate_clips",
    "find_videos",
    "make_synthetic_videos",
    "probe",
    "random_clip_starts",
    "read_clips",
    "read_diving48_split",
    "read_hmdb51_split",
    "read_kinetics_split",
    "read_manifest",
    "read_ssv2_split",
    "read_ucf101_split",
    "ucf101_ids",
    "uniform_clip_starts",
]
