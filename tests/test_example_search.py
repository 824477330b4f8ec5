"""`examples/search_videos.py`: what it indexes, finds and groups; its page in a real browser."""

from __future__ import annotations

import base64
import io
import json
import os
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path
from urllib.parse import unquote

import av
import numpy as np
import pytest
import torch
from headless import network
from selenium.webdriver import Chrome
from videos import read_barcodes, write_video

from iivcl.backbones import slow_resnet
from iivcl.data import _stream, make_synthetic_videos, open_video, read_manifest

SCRIPT = Path(__file__).parents[1] / "examples" / "search_videos.py"
COPY = "copy <b onclick=x>&amp; \"é'#?%41 of it.mp4"  # of the first video
LONG = "a_name_without_a_single_space_that_would_not_fit_a_phone_" + "x" * 60 + ".mp4"


def read_frames(path: Path) -> list[np.ndarray]:
    with open_video(path) as video:
        clip = video.read([list(range(video.num_frames))])[0]  # (C, T, H, W)
    return list(clip.permute(1, 2, 3, 0).contiguous().numpy())


def encode(path: Path, frames: list[np.ndarray], crf: int = 18) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"crf": str(crf)})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


class Workplace:
    """A folder of videos, an encoder of random weights, and the script."""

    def __init__(self, root: Path) -> None:
        self.root, self.videos, self.out = root, root / "videos", root / "search"
        self.paths = make_synthetic_videos(self.videos, 6, num_classes=3)
        (root / "my_encoder.py").write_text(
            "from iivcl.backbones import slow_resnet\ndef tiny():\n    return slow_resnet(18)\n"
        )
        generator_state = torch.get_rng_state()
        torch.manual_seed(0)
        about = {"backbone": "my_encoder:tiny", "frames": 4, "stride": 2, "size": 32}
        torch.save({"model": slow_resnet(18).state_dict(), **about}, root / "encoder.pt")
        torch.set_rng_state(generator_state)

    def run(
        self, *arguments: object, checkpoint: object = "encoder.pt", folder: str = "videos",
        backbone: str | None = "my_encoder:tiny",
    ) -> str:  # fmt: skip
        """Run the script in this process and in the folder; give what it prints."""
        named = [] if backbone is None else ["--backbone", backbone]
        command = [SCRIPT, checkpoint, folder, *named, "--workers", 0, *arguments]
        printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
            patch.chdir(self.root)
            patch.syspath_prepend(SCRIPT.parent)
            patch.setattr(sys, "argv", list(map(str, command)))
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return printed.buffer.getvalue().decode()

    def index(self) -> dict[str, dict[str, object]]:
        """Give by path what the index says of every video, with its windows."""
        with np.load(self.out / "index.npz") as content:
            about = json.loads(str(content["about"]))
            columns = {name: content[name] for name in content.files if name != "about"}
        videos, begin = {}, 0
        for video in about["videos"]:
            end = begin + video["windows"]
            rows = {name: column[begin:end] for name, column in columns.items()}
            videos[os.path.relpath(video["path"], self.videos)] = {**video, **rows}
            begin = end
        return videos


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A folder with one copy, two videos behind one black intro, and what is no video."""
    place = Workplace(tmp_path_factory.mktemp("search"))
    first = read_frames(place.paths[0])
    encode(place.videos / COPY, first, crf=32)
    intro = [np.zeros_like(first[0])] * 28  # more than half of either
    for path in place.paths[2], place.paths[4]:
        encode(path, intro + read_frames(path))
    (place.videos / LONG).write_bytes(place.paths[5].read_bytes())
    place.paths[5].unlink()
    (place.videos / "broken.mp4").write_bytes(b"this is no video")
    return place


@pytest.fixture(scope="module")
def searched(place: Workplace) -> Workplace:
    done = place.run("--query", place.paths[0])
    assert "index: 7 videos, 7 read now; skipped: 1\n" in done
    assert f"skipped: {place.videos / 'broken.mp4'}: Invalid data" in done
    return place


def test_windows_slide_over_the_whole_video(searched: Workplace) -> None:
    video = searched.index()[str(searched.paths[2].relative_to(searched.videos))]
    first, seconds = video["first"], video["seconds"]  # 52 frames at 12 a second
    assert first.tolist() == [*range(0, 45, 3), 45]  # a window is 7 frames, and hops by half
    np.testing.assert_allclose(seconds[:, 0], first / 12)
    np.testing.assert_allclose(seconds[:, 1], (first + 7) / 12)
    assert video["duration"] == pytest.approx(52 / 12)
    np.testing.assert_allclose(np.linalg.norm(video["features"], axis=1), 1, rtol=1e-5)
    assert video["plain"].tolist() == [start + 7 <= 28 for start in first]


@pytest.mark.parametrize("hop", [None, 0.04, 2])
@pytest.mark.parametrize(("name", "codec"), [("a.wmv", "wmv2"), ("a.mpg", "mpeg2video")])
def test_windows_of_a_file_that_decodes_forward_only(
    name: str, codec: str, hop: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a window shows is right, and no frame is decoded for each window again."""
    path, decoded = write_video(tmp_path / name, 300, codec=codec), []

    def counted(reader, original=_stream.Stream._decode_from_start):
        for frame in original(reader):
            decoded.append(1)
            yield frame

    monkeypatch.setattr(_stream.Stream, "_decode_from_start", counted)
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from _search_index import Windows

    found = list(Windows([str(path)], {"frames": 8, "stride": 4, "hop": hop, "size": 42}))
    assert len(decoded) <= 2 * 300  # to count them, and to read
    seconds = found.pop()[1]
    assert seconds == pytest.approx(12)
    first = torch.cat([first for _, (_, first, _) in found])
    clips = torch.cat([clips for _, (clips, _, _) in found])
    assert first[-1] == 300 - 29
    assert read_barcodes(clips).equal(first[:, None] + 4 * torch.arange(8))


def test_windows_of_a_size_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [write_video(tmp_path / f"{w}.ts", w, height=48, width=w) for w in (60, 132)]
    path = tmp_path / "changes.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from _search_index import Windows

    found = list(Windows([str(path)], {"frames": 8, "stride": 2, "hop": None, "size": 42}))[:-1]
    assert {clips.shape[-2:] for _, (clips, *_) in found} == {(48, 60), (48, 132)}
    with open_video(path) as video:
        for _, (clips, first, _) in found:
            wanted = first[:, None] + 2 * torch.arange(8)
            assert clips.equal(video.read(wanted, short_side=48))


def test_only_the_copy_is_a_near_duplicate(searched: Workplace) -> None:
    found = json.loads((searched.out / "duplicates.json").read_text())
    (group,) = found["groups"]
    assert [v["path"] for v in group["videos"]] == [
        str(path) for path in sorted([searched.paths[0], searched.videos / COPY])
    ]
    assert [v["duration_seconds"] for v in group["videos"]] == [2, 2]
    (match,) = group["matches"]
    assert match["a_seconds"] == match["b_seconds"] == [0, 2]
    assert match["a_duration_seconds"] == match["b_duration_seconds"] == 2
    assert 0.9 < match["similarity"] <= 1.001
    assert found["apart"] == []
    assert [video["path"] for video in found["skipped"]] == [str(searched.videos / "broken.mp4")]


def test_groups_are_ids_of_a_manifest(searched: Workplace) -> None:
    manifest = read_manifest(searched.out / "manifest.jsonl")
    assert all(Path(path).is_file() for path in manifest.paths)
    id_of = dict(zip(manifest.paths, manifest.ids.tolist(), strict=True))
    assert len(id_of) == 7
    assert len(set(id_of.values())) == 6
    assert id_of[str(searched.paths[0])] == id_of[str(searched.videos / COPY)]


def test_the_index_is_incremental(place: Workplace, searched: Workplace, tmp_path: Path) -> None:
    before = searched.index()
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.npz").write_bytes((searched.out / "index.npz").read_bytes())
    again = place.run("--out", out)
    assert "index: 7 videos, 0 read now; skipped: 1\n" in again

    changed, removed, added = place.paths[1], place.paths[3], place.videos / "new.mp4"
    content = removed.read_bytes()
    try:
        os.utime(changed, ns=(0, 0))
        removed.rename(added)
        third = place.run("--out", out)
        assert "index: 7 videos, 2 read now; skipped: 1\n" in third
        assert sorted(file.name for file in out.iterdir()) == [
            "duplicates.json", "index.npz", "manifest.jsonl", "search.html",
        ]  # fmt: skip
        other = place.run("--out", out, "--stride", 1, folder="videos/circle")
        assert "other windows and is made anew" in other
        assert "2 read now" in other
        (out / "index.npz").write_bytes(b"PK\x03\x04 half a file")
        damaged = place.run("--out", out, folder="videos/circle")
        assert "cannot be read and is made anew" in damaged
        assert "2 read now" in damaged
    finally:
        added.unlink(missing_ok=True)
        removed.write_bytes(content)
    assert searched.index().keys() == before.keys()


def test_what_joins_two_videos_does_not_make_them_one_group(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    for path in place.paths[2:]:
        path.unlink()
    a, b = place.paths[:2]
    encode(place.videos / "both.mp4", read_frames(a) + read_frames(b))
    for other in make_synthetic_videos(tmp_path / "others", 4, num_classes=4, seed=7):
        other.rename(place.videos / f"other {other.name}")
    place.run()
    found = json.loads((place.out / "duplicates.json").read_text())
    (group,) = found["groups"]
    paths = {video["path"] for video in group["videos"]}
    assert len(paths) == 2
    assert str(place.videos / "both.mp4") in paths
    ((left_out),) = {str(a), str(b)} - paths
    assert found["apart"]
    for match in found["apart"]:
        assert {match["a"], match["b"]} == {left_out, str(place.videos / "both.mp4")}
    stretch = {match["a"]: match for match in group["matches"] + found["apart"]}[str(b)]
    assert stretch["b_seconds"][0] == pytest.approx(2, abs=0.4)  # where b begins in both


def test_a_shared_intro_is_no_near_duplicate(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    intro = read_frames(place.paths[0])[:14]
    for path in place.paths[2], place.paths[4]:
        encode(path, intro + read_frames(path))
    assert "near-duplicates: 0 videos in 0 groups; apart: 0 pairs\n" in place.run()
    found = json.loads((place.out / "duplicates.json").read_text())
    assert found["groups"] == found["apart"] == []


def test_a_folder_of_black_videos(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    (tmp_path / "black").mkdir()
    for name in "ab":
        encode(tmp_path / "black" / f"{name}.mp4", [np.zeros((48, 48, 3), np.uint8)] * 12)
    done = place.run("--query", place.paths[0], folder="black")
    assert "near-duplicates: 0 videos in 0 groups" in done
    with pytest.raises(SystemExit, match=r"^error: .*a\.mp4 shows nothing but plain frames$"):
        place.run("--query", "black/a.mp4")


def test_any_name_of_a_file(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    names = [b"not \xff utf-8.mp4", b"two\nlines.mp4", "\u202eright to left.mp4".encode()]
    (tmp_path / "named").mkdir()
    paths = [tmp_path / "named" / os.fsdecode(name) for name in names]
    try:
        for path, video in zip(paths, place.paths, strict=False):
            path.write_bytes(video.read_bytes())
    except OSError:
        pytest.skip("the file system takes no such names")
    place.run("--query", paths[0], folder="named")
    page = (place.out / "search.html").read_text()
    assert all(f'href="{path.as_uri()}"' in page for path in paths)
    rows = [json.loads(row) for row in (place.out / "manifest.jsonl").read_text().splitlines()]
    assert {row["path"] for row in rows} == set(map(str, paths))
    assert sorted(read_manifest(place.out / "manifest.jsonl").paths) == sorted(map(str, paths))


def test_encoders_of_train_minimal(place: Workplace, tmp_path: Path) -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from train_minimal import SmallEncoder
    finally:
        sys.path.remove(str(SCRIPT.parent))
    head = torch.nn.Linear(64, 8)
    torch.save(torch.nn.Sequential(SmallEncoder(), head).state_dict(), tmp_path / "small.pt")
    done = place.run("--out", tmp_path / "out", checkpoint=tmp_path / "small.pt", backbone=None)
    assert "index: 7 videos" in done


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folder": "gone"}, "error: `root`: no such folder: gone"),
        ({"folder": "empty"}, "error: there are no videos in empty"),
        ({"checkpoint": "gone.pt"}, "No such file or directory: 'gone.pt'"),
        ({"checkpoint": "my_encoder.py"}, "my_encoder.py is no checkpoint"),
        ({"backbone": "mc3_18"}, "holds another network than `backbone`"),
        ({"backbone": "LoadReport"}, "error: --backbone LoadReport: "),
        ({"backbone": "nothing"}, "error: --backbone nothing is not in iivcl.backbones"),
        ({"backbone": None}, "is of an encoder of your own: give --backbone my_encoder:tiny"),
        ({"query": "gone.mp4"}, "error: --query: no such file: gone.mp4"),
        ({"query": "my_encoder.py"}, "error: --query: my_encoder.py: Invalid data"),
        ({"query": "nothing.mp4"}, "error: --query: nothing.mp4: "),
    ],
)
def test_errors_are_one_line(
    place: Workplace, tmp_path: Path, arguments: dict[str, str], message: str
) -> None:
    (place.root / "empty").mkdir(exist_ok=True)
    (place.root / "nothing.mp4").touch()
    query = [] if "query" not in arguments else ["--query", arguments.pop("query")]
    with pytest.raises(SystemExit) as ended:  # python prints what is no number and ends with 1
        place.run(*query, "--out", tmp_path / "out", **arguments)
    line = ended.value.code
    assert isinstance(line, str)
    assert message in line
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# The page


def show(chrome: Chrome, page: Path, width: int, motion: str) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-reduced-motion", "value": motion}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    chrome.get(page.as_uri())
    chrome.execute_async_script(
        "const [done] = arguments;"
        "Promise.all([...document.images].map(image => image.decode())).then("
        "  () => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
    )


def point_at_the_first(chrome: Chrome) -> None:
    where = "const box = document.querySelector('.clip').getBoundingClientRect();"
    x, y = chrome.execute_script(where + "return [box.x + box.width / 2, box.y + box.height / 2]")
    hover = {"type": "mouseMoved", "x": x, "y": y}
    chrome.execute_cdp_cmd("Input.dispatchMouseEvent", hover)


PLAYING = """
return [...document.querySelectorAll(".clip")].map(clip => [
  clip.getBoundingClientRect().top < innerHeight && clip.getBoundingClientRect().bottom > 0,
  clip.firstChild.getAnimations().length > 0]);
"""


@pytest.mark.parametrize("width", [360, 1300])
def test_page_in_a_browser(searched: Workplace, browser: Chrome, width: int) -> None:
    page = searched.out / "search.html"
    browser.get_log("performance")
    show(browser, page, width, "no-preference")
    if folder := os.environ.get("SCREENSHOTS"):
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        Path(folder, f"search-{width}.png").write_bytes(base64.b64decode(shot["data"]))
    requests, failed = network(browser)
    assert {address for address in requests if not address.startswith("data:")} == {page.as_uri()}
    assert failed == []
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    pictures = "return [...document.images].map(i => i.complete && i.naturalWidth > 0)"
    assert set(browser.execute_script(pictures)) == {True}
    assert browser.execute_script("return document.querySelectorAll('[onclick]').length") == 0

    playing = browser.execute_script(PLAYING)
    assert any(in_view for in_view, _ in playing)
    assert all(in_view == plays for in_view, plays in playing)
    browser.execute_script("document.querySelector('#play').click()")
    assert not any(plays for _, plays in browser.execute_script(PLAYING))
    point_at_the_first(browser)
    assert [plays for _, plays in browser.execute_script(PLAYING)] == [
        number == 0 for number in range(len(playing))
    ]


def test_nothing_moves_for_readers_who_prefer_that(searched: Workplace, browser: Chrome) -> None:
    show(browser, searched.out / "search.html", 1300, "reduce")
    assert not any(plays for _, plays in browser.execute_script(PLAYING))
    point_at_the_first(browser)
    assert browser.execute_script("return document.querySelector('a:hover') !== null")
    assert not any(plays for _, plays in browser.execute_script(PLAYING))


def test_names_are_text_and_links_open_the_files(searched: Workplace, browser: Chrome) -> None:
    show(browser, searched.out / "search.html", 1300, "reduce")
    links = dict(
        browser.execute_script(
            "return [...document.querySelectorAll('figure')].map(figure => ["
            "  figure.querySelector('.path').textContent, figure.querySelector('a').href])"
        )
    )
    assert str(searched.videos / COPY) in links
    for path, link in links.items():
        assert unquote(link.removeprefix("file://")) == path
    nearest = "return document.querySelector('h2 ~ h2 ~ .grid .path').textContent"
    assert browser.execute_script(nearest) == str(searched.videos / COPY)
    headers = {}
    browser.get_log("performance")
    browser.get(links[str(searched.videos / COPY)])
    for entry in browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.responseReceived":
            headers[event["params"]["response"]["url"]] = event["params"]["response"]["mimeType"]
    assert headers[links[str(searched.videos / COPY)]] == "video/mp4"
