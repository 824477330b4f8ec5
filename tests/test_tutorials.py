"""The commands of the tutorials run as they are written, on less."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_encoder
import torch

from iivcl.data import find_videos, make_synthetic_videos

ROOT = Path(__file__).parents[1]
TINY = "tiny_encoder:with_norm"
# What is changed in a command, so that it takes seconds. The rest is as it is typed.
LESS = [
    (r"\d+, size=64", "12, size=32, num_classes=3, num_frames=8"),
    (r"train_minimal:SmallEncoder|slow_r50(?==)", TINY),
    (r"--frames \d+", "--frames 4"),
    (r"--stride \d+", "--stride 1"),
    (r"--size \d+", "--size 32"),
    (r"--short-side \d+", "--short-side 36"),
    (r"--batch-size \d+", "--batch-size 4"),
    (r"--epochs \d+", "--epochs 2"),
    (r"--warmup-epochs \d+", "--warmup-epochs 1"),
    (r"--preset paper", f"--backbone {TINY} --precision float32 --frames 4 --stride 1 --size 32"),
    (r"(?=run/encoder.pt labelled)", f"--backbone {TINY} "),
    (r"--workers 1", "--workers 0"),
    (r"(examples/\w+\.py (?!my_videos)(?!.*--workers).*)", r"\1 --workers 0"),
]


def commands(page: str) -> list[str]:
    text = (ROOT / "docs" / "tutorial" / page).read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if not line.startswith("pip ")]


def run(command: str, folder: Path) -> str:
    for typed, less in LESS:
        command = re.sub(typed, less, command)
    words = shlex.split(command)
    assert words[0] == "python"
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


@pytest.mark.slow
def test_from_a_folder_to_a_searchable_collection(folder: Path) -> None:
    typed = commands("collection.md")
    assert len(typed) == 6
    for command in typed:
        run(command, folder)
    for name in ("prepared/manifest.csv", "run/encoder.pt", "result.json", "run2/encoder.pt",
                 "pictures/neighbors.png", "search/search.html"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name


@pytest.mark.slow
def test_a_published_encoder_goes_to_another_domain(folder: Path) -> None:
    make_synthetic_videos(folder / "prepared", 12, size=32, num_classes=2, num_frames=8)
    rows = ["path,label,split"]
    for number, path in enumerate(find_videos(folder / "prepared")):
        name = Path(path).relative_to(folder)
        rows.append(f"{name},{Path(path).parent.name},{'test' if number % 3 == 0 else 'train'}")
    (folder / "labelled.csv").write_text("\n".join(rows))
    published = folder / "MoCo_SlowR50_8x8_T4_epoch_00200.pyth"
    torch.save({"model_state": tiny_encoder.with_norm().state_dict()}, published)
    page = (ROOT / "docs" / "tutorial" / "own-domain.md").read_text()
    [code] = re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    assert (folder / "pretrain.csv").read_text().count(",test\n") == 4
    typed = commands("own-domain.md")
    assert len(typed) == 5
    for command in typed:
        run(command, folder)
    for name in ("before.json", "after.json", "run/encoder.pt", "finetuned/result.json",
                 "control/result.json"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
