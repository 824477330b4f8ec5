"""Encoders of other libraries behind the interface of this one; nothing is downloaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from adapted import image_resnet, timm_vit, v_jepa_2, video_mae
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from iivcl.backbones import VideoEncoder, as_encoder, inflate, load_weights
from iivcl.momentum import momentum_copy, momentum_update_

VIDEO = (2, 3, 4, 32, 32)


class Tokens(nn.Module):
    """Gives the mean of every cell of 2 frames and 4 x 4 pixels, as tokens behind one of zeros."""

    def forward(self, video: Tensor) -> tuple[Tensor, str]:
        cells = nn.functional.avg_pool3d(video, (2, 4, 4)).flatten(2).transpose(1, 2)
        return torch.cat([torch.zeros_like(cells[:, :1]), cells], dim=1), "what else there is"


def cells_of_pixels() -> VideoEncoder:
    return as_encoder(Tokens(), feature_dim=3, strides=(2, 4), prefix_tokens=1)


BUILDERS: dict[Callable[[], VideoEncoder], tuple[int, int, int]] = {  # and the size of the map
    video_mae: (2, 2, 2),
    v_jepa_2: (2, 2, 2),
    timm_vit: (4, 2, 2),
    image_resnet: (4, 1, 1),
    cells_of_pixels: (2, 8, 8),
}


@pytest.mark.parametrize("build", BUILDERS)
def test_it_is_an_encoder(build: Callable[[], VideoEncoder]) -> None:
    encoder = build().eval()
    video = torch.randn(VIDEO)
    with torch.no_grad():
        cells, features = encoder.features(video), encoder(video)
        assert cells.shape == (2, encoder.feature_dim, *BUILDERS[build])
        assert features.shape == (2, encoder.feature_dim)
        if build is not timm_vit:  # which takes the token of the class
            torch.testing.assert_close(features, cells.mean(dim=(2, 3, 4)))
        alone = encoder(video[1:])
    torch.testing.assert_close(alone, features[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [video_mae, image_resnet])
def test_it_trains_and_has_a_momentum_encoder(build: Callable[[], VideoEncoder]) -> None:
    encoder = build()
    key_encoder = momentum_copy(encoder)
    before = [p.clone() for p in key_encoder.parameters()]
    encoder.gradient_checkpointing = True
    encoder(torch.randn(VIDEO)).square().mean().backward()
    with torch.no_grad():
        for p in encoder.parameters():
            if p.grad is not None:
                p -= p.grad
    momentum_update_(key_encoder, encoder, 0.5)
    moved = [not torch.equal(a, b) for a, b in zip(key_encoder.parameters(), before, strict=True)]
    assert any(moved)


def test_tokens_come_in_the_order_of_time_rows_and_columns() -> None:
    video = torch.randn(VIDEO)
    expected = nn.functional.avg_pool3d(video, (2, 4, 4))
    torch.testing.assert_close(cells_of_pixels().features(video), expected)


def test_frames_are_encoded_one_by_one() -> None:
    encoder, video = timm_vit().eval(), torch.randn(VIDEO)
    with torch.no_grad():
        one_by_one = [encoder.module(frame)[:, 0] for frame in video.unbind(2)]
        torch.testing.assert_close(encoder(video), torch.stack(one_by_one).mean(dim=0))
        maps = torch.stack(
            [encoder.features(frame[:, :, None])[:, :, 0] for frame in video.unbind(2)], 2
        )
        torch.testing.assert_close(encoder.features(video), maps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "output",
    [
        lambda x: x.mean(dim=(2, 3, 4)),
        lambda x: x,
        lambda x: x.movedim(1, -1),
        lambda x: x.mean(dim=2),
        lambda x: x.mean(dim=2).movedim(1, -1),
    ],
)
def test_vectors_and_maps_with_the_channels_where_they_may_be(
    output: Callable[[Tensor], Tensor],
) -> None:
    class Module(nn.Module):
        def forward(self, video: Tensor) -> Tensor:
            return output(video)

    video = torch.randn(2, 3, 4, 5, 6)
    encoder = as_encoder(Module(), feature_dim=3, strides=(1, 1))
    torch.testing.assert_close(encoder(video), video.mean(dim=(2, 3, 4)))
    assert encoder.features(video).shape[1] == 3


def test_weights_of_an_adapted_module_load(tmp_path: Path) -> None:
    encoder = image_resnet()
    torch.save(
        {"model": nn.Sequential(encoder, nn.Linear(2, 2)).state_dict()}, tmp_path / "own.pth"
    )
    other = image_resnet()
    report = load_weights(other, tmp_path / "own.pth")
    assert report == ([], ["model.1.weight", "model.1.bias"], "model.0.module.")
    torch.testing.assert_close(dict(other.state_dict()), dict(encoder.state_dict()))


def test_a_renamed_block_of_an_adapted_module(tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    state = image_resnet().module.state_dict()
    torch.save({name.replace("4.0.", "4.9."): value for name, value in state.items()}, path)
    names = "(4.0.bn1.bias, 4.0.bn1.running_mean, 4.0.bn1.running_var, ...) missing in the file; "
    names += "12 tensors (4.9.bn1.bias, 4.9.bn1.num_batches_tracked, 4.9.bn1.running_mean, ...) "
    with pytest.raises(
        ValueError, match=re.escape(f"`backbone`; 10 tensors {names}not in the backbone")
    ):
        load_weights(image_resnet(), path)


@pytest.mark.parametrize("frames", [1, 3, 5])
def test_inflated_weights_give_at_first_what_each_frame_gives(frames: int) -> None:
    network = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1]).eval()
    trunk = nn.Sequential(*list(network.children())[:-2])
    state = {name: value.clone() for name, value in trunk.state_dict().items()}
    options = {"feature_dim": 512, "strides": (1, 32)}
    video = torch.randn(2, 3, 5, 48, 40)
    with torch.no_grad():
        flat = as_encoder(trunk, layout="BCHW", **options).features(video)
        deep = as_encoder(inflate(trunk, frames=frames), **options).eval()
        torch.testing.assert_close(deep.features(video), flat, rtol=1e-4, atol=1e-4)
        vectors = inflate(nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten()))(video)
        torch.testing.assert_close(vectors, flat.mean(dim=(2, 3, 4)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dict(trunk.state_dict()), state)  # the network itself is as it was


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding="same", groups=2),
        nn.Conv2d(4, 6, (1, 3), (2, 1), (0, 2), (1, 2), padding_mode="circular"),
        nn.Conv2d(4, 6, 3, padding="valid", bias=False),
        nn.Conv2d(4, 6, 1),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d((2, 3), ceil_mode=True, count_include_pad=False),
        nn.AdaptiveAvgPool2d((None, 2)),
    ],
    ids=repr,
)
def test_every_layer_gives_at_first_what_it_gives_of_each_frame(layer: nn.Module) -> None:
    video = torch.randn(2, 4, 3, 9, 10)
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        video = video[:, :, :1]  # which pools over time as well
    expected = torch.stack([layer(frame) for frame in video.unbind(2)], dim=2)
    torch.testing.assert_close(inflate(layer)(video), expected)


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_weights_that_are_computed_are_inflated_as_they_are(norm: str) -> None:
    wrap = getattr(nn.utils.parametrizations, norm)
    flat = nn.Sequential(wrap(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)).eval()
    pictures = torch.randn(2, 3, 8, 8)
    deep = inflate(flat)
    found = deep(pictures[:, :, None].expand(-1, -1, 5, -1, -1))
    torch.testing.assert_close(found[:, :, 2], flat(pictures))
    assert [name for name, _ in deep[0].named_parameters()] == ["bias", "weight"]


def test_inflated_weights_take_gradients_in_every_frame() -> None:
    layer = inflate(nn.Conv2d(2, 3, 3, padding=1, bias=False))
    layer(torch.randn(2, 2, 4, 8, 8)).square().sum().backward()
    assert (layer.weight.grad.abs().amax(dim=(0, 1, 3, 4)) > 0).all()


def test_a_layer_in_two_places_stays_one_and_frozen_ones_stay_frozen() -> None:
    shared, frozen = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1).requires_grad_(False)
    deep = inflate(nn.Sequential(shared, nn.Sequential(shared, frozen)))
    assert deep[0] is deep[1][0]
    assert deep[0].weight.requires_grad
    assert not deep[1][1].weight.requires_grad
    assert type(shared) is nn.Conv2d  # the network itself is as it was


class Active(nn.BatchNorm2d):
    """As image networks have it, with an activation inside."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Standardized(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean(), bias)


@pytest.mark.parametrize("layer", [Active(3), Standardized(3, 3, 1)], ids=["norm", "convolution"])
def test_a_layer_that_computes_something_of_its_own_is_refused(layer: nn.Module) -> None:
    message = f"'1' is a {type(layer).__name__}, which computes something of its own"
    with pytest.raises(ValueError, match=f"^`module` must have layers of torch; {message}$"):
        inflate(nn.Sequential(nn.Conv2d(3, 3, 1), layer))


@pytest.mark.parametrize("build", [image_resnet, timm_vit, cells_of_pixels])
def test_an_empty_batch_has_no_features(build: Callable[[], VideoEncoder]) -> None:
    encoder = build().eval()
    assert encoder(torch.zeros(0, *VIDEO[1:])).shape == (0, encoder.feature_dim)


class Gives(nn.Module):
    """Gives something, whatever it takes."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, video: Tensor) -> object:
        return self.output


@pytest.mark.parametrize(
    ("output", "got"),
    [
        ({"x_norm_clstoken": 1, "masks": None}, "dict with 'x_norm_clstoken', 'masks'"),
        (None, "NoneType"),
        ((), "tuple"),
        (([torch.zeros(2, 3)], 0), "list"),
    ],
)
def test_an_output_that_is_no_tensor_is_named(output: object, got: str) -> None:
    message = (
        "the module must give vectors, a map or tokens, by itself, as `last_hidden_state` or as "
        f"the first of a tuple; got {got}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_encoder(Gives(output), feature_dim=3, strides=(1, 1))(torch.zeros(VIDEO))


def test_a_method_is_no_module() -> None:
    message = "`module` must be an nn.Module, whose parameters train; got method"
    with pytest.raises(TypeError, match=f"^{message}"):
        as_encoder(Tokens().forward, feature_dim=3, strides=(1, 1))  # type: ignore[arg-type]


def test_an_even_number_of_frames_has_no_middle() -> None:
    with pytest.raises(ValueError, match=r"^`frames` must be odd; got 2$"):
        inflate(nn.Conv2d(2, 3, 3), frames=2)


IDENTITY = nn.Identity()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: as_encoder(IDENTITY, feature_dim=3, strides=(1, 1), layout="THWC"),  # type: ignore[arg-type]
            "`layout` must be one of ('BCTHW', 'BTCHW', 'BCHW'); got 'THWC'",
        ),
        (
            lambda: as_encoder(IDENTITY, feature_dim=3, strides=(2, 1), layout="BCHW"),
            "`strides` of frames must begin with 1; got (2, 1)",
        ),
        (
            lambda: as_encoder(Tokens(), feature_dim=3, strides=(2, 4))(torch.zeros(VIDEO)),
            "`strides` and `prefix_tokens` must tell the tokens, of which the module gives 129; "
            "got 2 x 8 x 8 cells and 0 more",
        ),
        (
            lambda: as_encoder(IDENTITY, feature_dim=7, strides=(1, 1))(torch.zeros(VIDEO)),
            "the module must give vectors, a map or tokens with `feature_dim` 7; got "
            "(2, 3, 4, 32, 32)",
        ),
        (
            lambda: as_encoder(Gives(torch.zeros(3)), feature_dim=3, strides=[1, 1])(  # type: ignore[arg-type]
                torch.zeros(VIDEO)
            ),
            "the module must give vectors, a map or tokens with `feature_dim` 3; got (3,)",
        ),
        (
            lambda: as_encoder(
                Gives(torch.zeros(8, 3, 1, 2, 2)), feature_dim=3, strides=(1, 1), layout="BCHW"
            )(torch.zeros(VIDEO)),
            "the module must give vectors, a map or tokens with `feature_dim` 3; got "
            "(8, 3, 1, 2, 2)",
        ),
        (
            lambda: as_encoder(
                IDENTITY, feature_dim=3, strides=(1, 1), pool="first", prefix_tokens=1
            )(torch.zeros(VIDEO)),
            "`pool` 'first' takes a token; the module gives (2, 3, 4, 32, 32)",
        ),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()
