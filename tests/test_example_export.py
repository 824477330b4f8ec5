"""`examples/export.py`: what it writes is the encoder, and what it cannot write leaves nothing."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pretraining
import pytest
import tiny_encoder
import torch
import yaml
from torch import nn

from iivcl.backbones import load_weights

OWN = ["--backbone", "tiny_encoder:with_norm"]
CLIP = {"frames": 4, "stride": 2, "size": 32}


class Odd(tiny_encoder.Tiny):
    """Its features depend on their values, which no program can hold."""

    def __init__(self) -> None:
        super().__init__(norm=True)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        features = super().forward(video)
        return features if features.sum().item() > 0 else -features


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = tiny_encoder.with_norm()
    for _ in range(3):  # of the running statistics
        model(torch.rand(4, 3, 4, 32, 32))
    about = {"method": "iivcl", "backbone": "tiny_encoder:with_norm", **CLIP}
    torch.save({"model": model.state_dict(), **about}, tmp_path / "encoder.pt")
    return tmp_path / "encoder.pt"


def export(*arguments: object) -> Any:
    script = pretraining.load("export")
    script.main([str(argument) for argument in arguments])
    return script


def encoder_of(checkpoint: Path) -> nn.Module:
    model = tiny_encoder.with_norm().eval()
    load_weights(model, checkpoint)
    return model


@pytest.mark.slow
def test_onnx(checkpoint: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    export(checkpoint, tmp_path / "out", *OWN)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"model.pt2", "model.onnx"}
    session = runtime.InferenceSession(tmp_path / "out/model.onnx")
    assert [i.shape[1:] for i in session.get_inputs()] == [[3, 4, 32, 32]]
    encoder = encoder_of(checkpoint)
    for clips in torch.randn(2, 3, 4, 32, 32), torch.randn(5, 3, 4, 32, 32):
        (features,) = session.run(["features"], {"video": clips.numpy()})
        torch.testing.assert_close(torch.from_numpy(features), encoder(clips))


@pytest.mark.parametrize("batch", [None, 2])
def test_program(checkpoint: Path, tmp_path: Path, batch: int | None) -> None:
    fixed = [] if batch is None else ["--batch", batch]
    export(checkpoint, tmp_path / "deep/out", *OWN, "--to", "pt2", *fixed)
    assert [file.name for file in (tmp_path / "deep/out").iterdir()] == ["model.pt2"]
    program = torch.export.load(tmp_path / "deep/out/model.pt2").module()
    encoder = encoder_of(checkpoint)
    for clips in torch.randn(2, 3, 4, 32, 32), torch.randn(5, 3, 4, 32, 32):
        if batch in (None, len(clips)):
            torch.testing.assert_close(program(clips), encoder(clips))
        else:
            with pytest.raises((RuntimeError, AssertionError)):
                program(clips)


def test_folder_for_a_hub(checkpoint: Path, tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "deep/hub"
    script = export(checkpoint, *OWN, "--hub", folder)
    files = {"README.md", "config.json", "model.safetensors"}
    assert {file.name for file in folder.iterdir()} == files
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
    encoder, clips = encoder_of(checkpoint), torch.randn(2, 3, 4, 32, 32)
    assert torch.equal(script.load_folder(folder, OWN[1])(clips), encoder(clips))
    with pytest.raises(SystemExit, match="is of an encoder of your own: give tiny_encoder:with_n"):
        script.load_folder(folder)  # whose recipe must not choose what is imported

    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "tiny_encoder:with_norm"
    assert {name: config[name] for name in CLIP} == CLIP
    assert (config["feature_dim"], config["mean"], config["std"]) == (16, [0.45] * 3, [0.225] * 3)
    assert {"torch", "iivcl"} <= config["versions"].keys()

    card = (folder / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "iivcl",
        "pipeline_tag": "feature-extraction",
        "tags": ["video", "self-supervised-learning", "with_norm"],
    }
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # as a reader of the card would
    assert torch.equal(names["encoder"](clips), encoder(clips))
    assert names["features"].shape == (1, 16)


def test_weights_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file does not say is given; a function is found in the working folder."""
    torch.save({"state_dict": tiny_encoder.Tiny(norm=False).state_dict()}, tmp_path / "other.pth")
    (tmp_path / "own_tiny.py").write_text("from tiny_encoder import without_norm as build\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    clip = ["--frames", 4, "--stride", 2.5, "--size", 32]
    colours = ["--mean", 0.485, 0.456, 0.406, "--std", 0.229, 0.224, 0.225]
    export("other.pth", "--hub", "hub", "--backbone", "own_tiny:build", *clip, *colours)
    config = json.loads(Path("hub/config.json").read_text())
    assert config["mean"] == [0.485, 0.456, 0.406]
    assert (config["method"], config["step"]) == (None, None)
    assert config["stride"] == 2.5
    assert "| frames | 4, at a stride of 2.5 |" in Path("hub/README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the folder OUT, or --hub, or both"),
        (["out", "--batch", 0], "--batch must be above 0; got 0"),
        (["--hub", "a", "--stride", 0], "--stride must be above 0; got 0.0"),
        (["--hub", "a", "--std", 0.2, 0, 0.2], "--std must be above 0; got [0.2, 0.0, 0.2]"),
        (["--hub", "a", "--std", 1, 1, "nan"], "--std must be above 0; got [1.0, 1.0, nan]"),
        (["--hub", "a", "--mean", 0, 0, "inf"], "--mean must be finite; got [0.0, 0.0, inf]"),
        (["out", "--to", "pt2"], "is of an encoder of your own: give --backbone tiny_encoder:with"),
        (["out", "--to", "pt2", "--backbone", "r3d_18"], "is of an encoder of your own"),
        (["--hub", "."], "is there already"),
    ],
)
def test_what_is_not_asked_well(
    arguments: list[object], message: str, checkpoint: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    check_nothing_is_left(checkpoint, arguments, message)


def test_a_checkpoint_that_is_none(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    out, asked = tmp_path / "out", ["--to", "pt2", *OWN]
    check_nothing_is_left(tmp_path / "gone.pt", [out, *asked], "no such file")
    check_nothing_is_left(tmp_path / "text.pt", [out, *asked], "is no checkpoint, or not whole")
    lacking = "does not say of what clips it is: give --frames, --stride, --size"
    check_nothing_is_left(tmp_path / "other.pth", [out, *asked], lacking)
    clip = ["--frames", 4, "--stride", 2, "--size", 32]
    check_nothing_is_left(
        tmp_path / "other.pth", [out, *asked, *clip], "holds another network than"
    )
    check_nothing_is_left(checkpoint, [out, *asked, "--size", 0], "--size must be above 0; got 0")


def test_packages_that_are_not_installed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = pretraining.load("export")
    absent = ("onnx", "onnxscript", "onnxruntime", "safetensors")
    find = script.find_spec
    monkeypatch.setattr(script, "find_spec", lambda n: None if n in absent else find(n))
    asked = [tmp_path / "out", *OWN]
    check_nothing_is_left(checkpoint, asked, "onnx needs onnx, onnxscript, onnxruntime: pip inst")
    asked = ["--hub", tmp_path / "hub", *OWN]
    check_nothing_is_left(checkpoint, asked, "hub needs safetensors: pip install 'iivcl[safetens")


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    asked = [tmp_path / "closed/out", "--to", "pt2", *OWN]
    check_nothing_is_left(checkpoint, asked, "Permission denied")


@pytest.mark.parametrize("form", [["out", "--to", "pt2"], ["--hub", "hub"]])
def test_a_full_disk(checkpoint: Path, form: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent)
    with pretraining.small_disk(checkpoint.parent):
        check_nothing_is_left(checkpoint, [*form, *OWN], "File too large")


def test_a_file_where_a_folder_should_be(checkpoint: Path, tmp_path: Path) -> None:
    asked = [checkpoint / "out", "--to", "pt2", *OWN]
    check_nothing_is_left(checkpoint, asked, "Not a directory")


def test_an_encoder_without_a_program(checkpoint: Path, tmp_path: Path) -> None:
    asked = [tmp_path / "out", "--to", "pt2", "--backbone", "tiny_encoder:with_norm"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_encoder, "with_norm", Odd)
        check_nothing_is_left(checkpoint, asked, "torch cannot export this encoder: ")


def test_a_program_that_differs(checkpoint: Path, tmp_path: Path) -> None:
    script = pretraining.load("export")
    write = script.write_pt2
    script.write_pt2 = lambda *args: lambda clips: write(*args)(clips) * 1.001
    asked = [checkpoint, tmp_path / "out", "--to", "pt2", *OWN]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match=r"model\.pt2 differs from the encoder by 1\.\de-03 of"):
        script.main([str(argument) for argument in asked])
    assert sorted(tmp_path.rglob("*")) == before


def check_nothing_is_left(checkpoint: Path, arguments: list[Any], message: str) -> None:
    """The script ends with one line, and no file or folder is new."""
    before = sorted(checkpoint.parent.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        export(checkpoint, *arguments)
    line = ended.value.code
    assert isinstance(line, str)
    assert line.startswith("error: ")
    assert message in line
    assert len(line.splitlines()) == 1
    assert sorted(checkpoint.parent.rglob("*")) == before
