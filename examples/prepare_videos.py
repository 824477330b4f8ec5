"""Re-encode a folder of videos for training: small, with a keyframe every few frames, no sound.

    python examples/prepare_videos.py SRC DST --short-side 128 --gop 8

Decoding a clip then costs a few small frames instead of up to a whole group of large ones. DST
mirrors SRC, every video as .mp4, and gets `manifest.csv` (path, label = name of the folder) for
`iivcl.data.VideoClips`, and `failed.csv` with the files that could not be read and why.

Stop it at any time and start it again: finished files are not redone, but for those whose source is
newer, and no half file is ever seen under its final name. Frames keep their order and their number.
A file that cannot be read, or that crashes the decoder, does not end the run.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import os
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from multiprocessing import parent_process
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from iivcl.data import find_videos, open_video, read_manifest

Job = Callable[[], "str | None"]  # gives why it failed, or None
UNFINISHED = ".unfinished"  # folder in DST of the files being written
READ_BYTES = 64 << 20  # of frames that a process holds at a time
BT601, LIMITED = 6, 1  # how FFmpeg numbers the colours that every file is written in


def main() -> int:
    args = parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # names need not be in its encoding
    check_folders(args.src, args.dst)
    found = [Path(path) for path in find_videos(args.src)]
    sources = [path for path in found if not path.is_dir()]
    if len(sources) < len(found):
        print(f"{len(found) - len(sources)} folders of images are passed over")
    if not sources:
        sys.exit(f"{args.src} holds no video files")
    targets = choose_targets(sources, args.src)
    check_targets(targets, args.dst)
    check_labels(targets)

    settings = {"short_side": args.short_side, "gop": args.gop, "crf": args.crf}
    check_settings(args.dst, settings)
    with the_only_run(args.dst):
        return prepare_all(sources, targets, settings, args)


def prepare_all(
    sources: list[Path], targets: dict[Path, Path], settings: dict[str, int], args
) -> int:
    shutil.rmtree(args.dst / UNFINISHED, ignore_errors=True)  # what a killed run left
    (args.dst / UNFINISHED).mkdir()
    todo = [source for source in sources if not is_finished(source, args.dst / targets[source])]
    print(f"{len(sources)} videos, {len(sources) - len(todo)} of them finished before")
    print(f"writing to {args.dst}")
    jobs = {
        source: partial(prepare, source, args.dst, targets[source], **settings) for source in todo
    }
    try:
        failed = run_all(jobs, args.jobs, args.dst / UNFINISHED)
    except KeyboardInterrupt:
        sys.exit("stopped; start again to go on")
    shutil.rmtree(args.dst / UNFINISHED)

    finished = [source for source in sources if source not in failed]
    write_manifest(args.dst / "manifest.csv", [targets[source] for source in finished])
    write_csv(args.dst / "failed.csv", ["path", "cause"], sorted(failed.items()))
    for source, cause in sorted(failed.items()):
        print(f"failed: {source}: {cause}")
    print(f"{len(finished)} videos in {args.dst / 'manifest.csv'}")
    if failed:
        print(f"{len(failed)} that failed in {args.dst / 'failed.csv'}; start again to retry them")
    return 1 if failed else 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("src", type=Path, metavar="SRC", help="folder searched at every depth")
    parser.add_argument("dst", type=Path, metavar="DST", help="folder to write, mirrors SRC")
    parser.add_argument("--short-side", type=int, default=128, help="pixels; never scales up")
    parser.add_argument("--gop", type=int, default=8, help="frames from keyframe to keyframe")
    parser.add_argument("--crf", type=int, default=20, help="x264 quality, lower is better")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="files at a time")
    args = parser.parse_args()
    for name, least, most in (("short_side", 2, 8192), ("gop", 1, 600), ("crf", 0, 51)):
        if not least <= getattr(args, name) <= most:
            option = "--" + name.replace("_", "-")
            parser.error(f"{option} must be in [{least}, {most}]; got {getattr(args, name)}")
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1; got {args.jobs}")
    return args


def check_folders(src: Path, dst: Path) -> None:
    """Refuse what would read the files that it writes, or write over those that it reads."""
    if not src.is_dir():
        what = "a file; give the folder that holds it" if src.exists() else "not a folder"
        sys.exit(f"{src} is {what}")
    for inner, outer in ((dst, src), (src, dst)):  # resolved, so that no link hides it
        above = (inner.resolve(), *inner.resolve().parents)
        if any(path.exists() and path.samefile(outer) for path in above if outer.exists()):
            sys.exit(f"SRC {src} and DST {dst} must be apart; {inner} is, or lies in, {outer}")


def choose_targets(sources: list[Path], src: Path) -> dict[Path, Path]:
    """Map a/b.avi to a/b.mp4, or to a/b.avi.mp4 where two files would share that name.

    Names of other encodings are written in UTF-8, as the manifest is.
    """
    relative = {
        source: Path(str(source.relative_to(src)).encode("utf-8", "backslashreplace").decode())
        for source in sources
    }
    targets = {source: path.with_suffix(".mp4") for source, path in relative.items()}
    while True:  # a longer name may itself be taken
        count = Counter(targets.values())
        longer = {
            source: relative[source].with_name(relative[source].name + ".mp4")
            for source, target in targets.items()
            if count[target] > 1
        }
        if longer.items() <= targets.items():
            return targets
        targets |= longer


def check_targets(targets: dict[Path, Path], dst: Path) -> None:
    """Refuse to write two videos to one file, or over a source that a link leads to."""
    source_of = {target: source for source, target in targets.items()}
    for source, target in targets.items():
        if source_of[target] != source:
            sys.exit(f"{source} and {source_of[target]} would both be {target}; rename one of them")
    writes = {(dst / target).resolve() for target in targets.values()}
    for source in targets:
        real = source.resolve()
        if real in writes or dst.resolve() in real.parents:
            sys.exit(f"{source} lies in DST {dst} by way of a link; give a DST that is apart")


def check_labels(targets: dict[Path, Path]) -> None:
    """Refuse the name of a folder that the manifest could not have as a label."""
    with tempfile.TemporaryDirectory() as folder:
        write_manifest(Path(folder, "manifest.csv"), list(targets.values()))
        try:
            read_manifest(Path(folder, "manifest.csv"))
        except ValueError as error:
            cause = str(error).partition(": ")[2]
            sys.exit(f"the folder of a video is its label, and one must be renamed: {cause}")


@contextmanager
def the_only_run(dst: Path):
    """Refuse to write where another run does; what holds the lock ends with its process."""
    with (dst / "settings.json").open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another run is writing to {dst}; let it end, or give another folder")
        except OSError as error:  # a file system without locks
            print(f"{dst} cannot be locked ({error.strerror}): start no other run on it")
        yield


def is_finished(source: Path, target: Path) -> bool:
    """Whether a video was written after its source; a copy that keeps an older time counts so."""
    try:
        return target.stat().st_mtime >= source.stat().st_mtime
    except OSError:
        return False


def check_settings(dst: Path, settings: dict[str, int]) -> None:
    """Refuse to mix files of different settings in one folder."""
    file = dst / "settings.json"
    try:
        dst.mkdir(parents=True, exist_ok=True)
        before = json.loads(file.read_text()) if file.exists() else settings
        file.write_text(json.dumps(before))
    except ValueError:
        sys.exit(f"{file} cannot be read; remove it, or give another folder")
    except OSError as error:
        sys.exit(f"{dst} cannot be written: {error.strerror}")
    if before != settings:
        sys.exit(f"{dst} was begun with {before}; use these again, or another folder")


def run_all(jobs: dict[Path, Job], at_a_time: int, notes: Path) -> dict[Path, str]:
    """Run the jobs in processes; return why those of some files failed.

    A decoder that crashes takes all processes of a pool with it. Each file that was being read then
    gets a process of its own, so that it is known which one it was, and the others go on.
    """
    failed: dict[Path, str] = {}
    left = dict(jobs)
    progress = tqdm(total=len(left), unit="video")

    def done(source: Path, cause: str | None) -> None:
        del left[source]
        progress.update()
        if cause is not None:
            failed[source] = cause

    while left:
        run(dict(left), at_a_time, done)
        reading = {Path(os.fsdecode(note.read_bytes())) for note in notes.glob("*.source")}
        if left and not reading:
            sys.exit("a process died before it read anything; is there memory left?")
        for source in reading & left.keys():
            run({source: left[source]}, 1, done)
            if source in left:
                done(source, "the process that read it died")
        for note in notes.glob("*.source"):
            note.unlink(missing_ok=True)
    progress.close()
    return failed


def run(jobs: dict[Path, Job], at_a_time: int, done: Callable[[Path, str | None], None]) -> None:
    """Tell of each file that it is done, and what failed; return early when a process dies."""
    with ProcessPoolExecutor(at_a_time, initializer=end_with_parent) as pool:
        source_of = {pool.submit(job): source for source, job in jobs.items()}
        try:
            for job in as_completed(source_of):
                if not isinstance(job.exception(), BrokenProcessPool):
                    done(source_of[job], job.result())
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def prepare(
    source: Path, dst: Path, target: Path, *, short_side: int, gop: int, crf: int
) -> str | None:
    """Re-encode one file; return why it could not be done, or None."""
    unfinished = dst / UNFINISHED / f"{os.getpid()}.mp4"
    note = unfinished.with_suffix(".source")  # what is being read, should this process die
    note.write_bytes(os.fsencode(source))
    try:
        encode(source, unfinished, short_side=short_side, gop=gop, crf=crf)
        (dst / target).parent.mkdir(parents=True, exist_ok=True)
        os.replace(unfinished, dst / target)  # the whole file appears at once
    except Exception as error:  # whatever a file does, the others go on
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return cause.removeprefix(f"{source}: ")
    finally:
        note.unlink(missing_ok=True)
    return None


def encode(source: Path, target: Path, *, short_side: int, gop: int, crf: int) -> None:
    options = {
        "crf": str(crf),
        "g": str(gop),
        "preset": "veryfast",
        "tune": "fastdecode",
        "bf": "0",
    }
    with open_video(source) as video, av.open(f"file:{target}", "w") as output:
        short = min(short_side, *video.size)  # never enlarges
        scale = short / min(video.size)
        height, width = (max(2, 2 * round(side * scale / 2)) for side in video.size)
        rate = Fraction(video.fps).limit_denominator(1001) if video.fps > 0 else Fraction(25)
        encoded = output.add_stream("libx264", rate=rate, options=options)
        encoded.height, encoded.width, encoded.pix_fmt = height, width, "yuv420p"
        aspect = Fraction(video.pixel_aspect).limit_denominator(255)
        encoded.codec_context.sample_aspect_ratio = aspect
        encoded.codec_context.colorspace = BT601
        encoded.codec_context.color_range = LIMITED
        encoded.codec_context.thread_count = 1  # the files are what runs in parallel

        step, times = 1 / rate, list(range(video.num_frames + 1))  # of the frames, and the end
        if not video.constant_rate and (video.times.diff() > 0).all():
            step = Fraction(1, 90_000)
            seconds = [*video.times.tolist(), video.num_frames / video.fps]
            times = [round(second / step) for second in seconds]
        encoded.codec_context.time_base = step
        lasts = dict(zip(times, np.diff(times).tolist(), strict=False))  # how long each frame does

        def write(picture: av.VideoFrame | None) -> None:
            for packet in encoded.encode(picture):
                packet.duration = lasts[packet.pts]
                output.mux(packet)

        at_once = max(1, READ_BYTES // (3 * height * width))
        for start in range(0, video.num_frames, at_once):
            numbers = range(start, min(start + at_once, video.num_frames))
            [frames] = video.read([list(numbers)], short_side=short)  # (C, T, H, W), upright
            for number, frame in zip(numbers, frames.permute(1, 2, 3, 0).numpy(), strict=True):
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                picture = picture.reformat(
                    width, height, "yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG"
                )
                picture.pts, picture.time_base = times[number], step
                write(picture)
        write(None)


def end_with_parent() -> None:
    """End this process with the one that started it, however that one ends."""

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def write_manifest(path: Path, targets: list[Path]) -> None:
    write_csv(path, ["path", "label"], ([target, target.parent.name] for target in targets))


def write_csv(path: Path, header: list[str], rows) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerow(header)
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)  # spaces are kept within quotes


if __name__ == "__main__":
    sys.exit(main())
