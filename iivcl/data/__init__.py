"""Reading of real videos."""

from iivcl.data._ava import ActionBoxes, read_ava_actions, read_ava_boxes, read_ava_keyframes
from iivcl.data._container import DecodeError
from iivcl.data._dataset import VideoClips, collate_clips
from iivcl.data._find_videos import find_videos
from iivcl.data._manifest import Manifest, read_manifest
from iivcl.data._open_video import open_video, probe, read_clips
from iivcl.data._readings import Failure
from iivcl.data._recipe import ClipRecipe
from iivcl.data._sampling import clip_indices, random_clip_starts, uniform_clip_starts
from iivcl.data._splits import (
    read_diving48_split,
    read_hmdb51_split,
    read_kinetics_split,
    read_ssv2_split,
    read_ucf101_split,
    ucf101_ids,
)
from iivcl.data._synthetic import make_synthetic_videos
from iivcl.data._tar_clips import TarClips
from iivcl.data._video import Video, VideoInfo

__all__ = [
    "ActionBoxes",
    "ClipRecipe",
    "DecodeError",
    "Failure",
    "Manifest",
    "TarClips",
    "Video",
    "VideoClips",
    "VideoInfo",
    "clip_indices",
    "collate_clips",
    "find_videos",
    "make_synthetic_videos",
    "open_video",
    "probe",
    "random_clip_starts",
    "read_ava_actions",
    "read_ava_boxes",
    "read_ava_keyframes",
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
