"""Reading of real videos."""

from ._synthetic import make_synthetic_videos

__all__ = ["make_synthetic_videos"]
