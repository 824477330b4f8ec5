"""The page of `search_videos.py`: one file that asks for nothing else, and plays its pictures.

A thumbnail is a strip of frames, which the style of the page moves frame by frame: while it is in
view, under the pointer or in focus, and never for readers who prefer reduced motion. Names are text
from outside and are escaped wherever they stand; no other script than the one here may run.
"""

from __future__ import annotations

import base64
import hashlib
import io
from html import escape
from pathlib import Path

import torch
from _search_groups import Group, Match, Place
from PIL import Image

from iivcl.data import DecodeError, clip_indices, open_video

FRAMES, PIXELS = 8, 120  # of a thumbnail, and of its shorter side
MOST_GROUPS, MOST_MATCHES = 100, 6  # that the page shows; all are in duplicates.json


STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d0d7de, #3d444d); }
* { box-sizing: border-box; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 80rem; padding: 1rem;
  background: light-dark(#fff, #0d1117); color: light-dark(#1f2328, #e6edf3);
  overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
a { color: light-dark(#0550ae, #79b8ff); }
.grid { display: grid; gap: 1.25rem 1rem; padding: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(min(12rem, calc(50% - .5rem)), 1fr)); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; max-width: 44rem;
  border-top: 1px solid var(--line); padding: 1rem 0; margin: 0; }
.pair > p { grid-column: 1 / -1; margin: 0; }
figure { margin: 0; min-width: 0; } figcaption { font-size: .875rem; margin-top: .4rem; }
.clip { display: block; overflow: hidden; border-radius: 6px; background: #000; }
.clip img { display: block; height: 100%; width: calc(100% * var(--frames)); }
a:focus-visible { outline: 3px solid; outline-offset: 2px; }
.name { display: block; font-weight: 600; } .path { display: block; unicode-bidi: isolate;
  white-space: pre-wrap; opacity: .85; font-size: .8rem; }
label { display: inline-flex; gap: .5rem; align-items: center; min-height: 2.75rem; }
@keyframes play { to { transform: translateX(-100%); } }
@media (prefers-reduced-motion: no-preference) {
  body:has(#play:checked) .seen img, a:hover .clip img, a:focus-visible .clip img {
    animation: play 1.6s steps(var(--frames)) infinite; }
}
@media (prefers-reduced-motion: reduce) { label { display: none; } }
"""

SCRIPT = """
const observer = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) target.classList.toggle("seen", isIntersecting);
});
for (const clip of document.querySelectorAll(".clip")) observer.observe(clip);
"""


def write_page(
    query: Place | None, nearest: list[Match], groups: list[Group], apart: list[Match],
    num_videos: int, skipped: dict[str, str], clip: tuple[int, int],
) -> str:  # fmt: skip
    """Write the page; ``clip`` says how many frames a window has, and its stride."""
    body = ["<h1>Search of videos</h1>", f"<p>{num_videos} videos in the index.</p>"]
    body.append('<label><input type="checkbox" id="play" checked>Play what is in view</label>')
    if query is not None:
        body += ["<h2>Query</h2>", '<ul class="grid"><li>', figure(query, clip), "</li></ul>"]
        body += ["<h2>Nearest videos</h2>", '<ul class="grid">']
        for match in nearest:
            note = f"similarity {match.similarity:.3f}<br>to {seconds(match.a)} of the query<br>"
            body += ["<li>", figure(match.b, clip, note), "</li>"]
        body.append("</ul>" if nearest else "</ul><p>There is no other video.</p>")
    body.append("<h2>Near-duplicates</h2>")
    if not groups:
        body.append("<p>None: no two videos have half of one in the other.</p>")
    for number, group in enumerate(groups[:MOST_GROUPS]):
        body.append(f"<section><h3>Group {number}: {len(group.durations)} videos</h3>")
        body += [*pairs(group.matches, clip), "</section>"]
    if len(groups) > MOST_GROUPS:
        body.append(f"<p>And {len(groups) - MOST_GROUPS} groups more in duplicates.json.</p>")
    if apart:
        body.append("<h2>Alike, and in no group together</h2><p>They meet in a third video only: "
                    "give them one group by hand, or leave one out.</p>")  # fmt: skip
        body += pairs(apart, clip)
    if skipped:
        body.append(f"<h2>Skipped: {len(skipped)}</h2><ul>")
        body += [f"<li><p>{text(path)}: {text(cause)}</p></li>" for path, cause in skipped.items()]
        body.append("</ul>")
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    policy += f"script-src 'sha256-{allowed}'"
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>Search of videos</title>\n<style>{STYLE}</style>\n<main>\n"
        + "\n".join(body)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</html>\n"
    )


def pairs(matches: list[Match], clip: tuple[int, int]) -> list[str]:
    shown = [
        f'<div class="pair"><p>similarity {similarity:.3f}</p>{figure(a, clip)}{figure(b, clip)}'
        "</div>"
        for a, b, similarity in matches[:MOST_MATCHES]
    ]
    more = len(matches) - MOST_MATCHES
    return shown + ([f"<p>And {more} stretches more in duplicates.json.</p>"] if more > 0 else [])


def figure(place: Place, clip: tuple[int, int], note: str = "") -> str:
    path = Path(place.path)
    picture, ratio = thumbnail(place, clip)
    name = text(path.name)
    return (
        f'<figure><a href="{escape(path.as_uri())}">'
        f'<span class="clip" style="--frames: {FRAMES}; aspect-ratio: {ratio:.4f}">'
        f'<img alt="Frames of {name}" src="{picture}"></span>'
        f'<bdi class="name">{name}</bdi></a><figcaption>{note}'
        f"at {seconds(place)} of {clock(place.duration)}"
        f'<code class="path" dir="ltr">{text(place.path)}</code></figcaption></figure>'
    )


def thumbnail(place: Place, clip: tuple[int, int]) -> tuple[str, float]:
    """Draw frames of the window side by side; return a data URI, and width over height of one."""
    num_frames, stride = clip
    try:
        with open_video(place.path) as video:
            step = num_frames * stride / FRAMES
            first = torch.tensor([place.first])
            indices = clip_indices(first, video.num_frames, num_frames=FRAMES, stride=step)
            [frames] = video.read(indices, short_side=PIXELS, pixels="square")  # (3, T, H, W)
    except (DecodeError, OSError):  # it is gone since it was read
        frames = torch.zeros(3, FRAMES, PIXELS, PIXELS, dtype=torch.uint8)
    strip = frames.permute(2, 1, 3, 0).flatten(1, 2)  # (H, T x W, 3)
    content = io.BytesIO()
    Image.fromarray(strip.numpy()).save(content, "WEBP", quality=60)
    data = base64.b64encode(content.getvalue()).decode()
    return f"data:image/webp;base64,{data}", frames.shape[3] / frames.shape[2]


def seconds(place: Place) -> str:
    return f"{clock(place.start)} to {clock(place.end)}"


def clock(seconds: float) -> str:
    """Write 3725.4 as 1:02:05.4."""
    minutes, rest = divmod(round(seconds * 10), 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"


def text(name: str) -> str:
    """Escape text from outside; what is no character is written as a number."""
    return escape(name.encode("utf-8", "backslashreplace").decode("utf-8"))
