"""The network computes what its parts say, whatever size a picture has, and refuses other checkpoints."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from deepwell.errors import ModelSourceError
from deepwell.library.senses.efficientnet import FEATURES, EfficientNetLite, SameConv2d, Stage, fold, load_network
from deepwell.library.senses.labels import PictureClassifier, class_names, class_phrases, crop

TINY = (Stage(1, 3, 1, 1, 8), Stage(2, 3, 2, 6, 12), Stage(1, 5, 2, 6, 16))


def random_checkpoint(
    stages: tuple[Stage, ...] = TINY, stem: int = 8, classes: int = 5, seed: int = 0
) -> dict[str, Tensor]:
    """A checkpoint as the published one is laid out, with normalisation that is far from the identity."""
    torch.manual_seed(seed)
    state: dict[str, Tensor] = {}

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        state[f"{name}.weight"] = torch.randn(out, into, kernel, kernel) / (into * kernel * kernel) ** 0.5

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = torch.rand(channels) + 0.5
        state[f"{name}.bias"] = torch.randn(channels) * 0.2
        state[f"{name}.running_mean"] = torch.randn(channels) * 0.2
        state[f"{name}.running_var"] = torch.rand(channels) + 0.5

    conv("_conv_stem", stem, 3, 3)
    norm("_bn0", stem)
    channels, i = stem, 0
    for stage in stages:
        for _ in range(stage.repeats):
            hidden = channels * stage.expand
            if stage.expand > 1:
                conv(f"_blocks.{i}._expand_conv", hidden, channels, 1)
                norm(f"_blocks.{i}._bn0", hidden)
            conv(f"_blocks.{i}._depthwise_conv", hidden, 1, stage.kernel)
            norm(f"_blocks.{i}._bn1", hidden)
            conv(f"_blocks.{i}._project_conv", stage.channels, hidden, 1)
            norm(f"_blocks.{i}._bn2", stage.channels)
            channels, i = stage.channels, i + 1
    conv("_conv_head", FEATURES, channels, 1)
    norm("_bn1", FEATURES)
    state["_fc.weight"], state["_fc.bias"] = torch.randn(classes, FEATURES) / 36, torch.randn(classes)
    return state


def by_the_paper(state: dict[str, Tensor], pixels: Tensor, stages: tuple[Stage, ...] = TINY) -> Tensor:
    """The same network written out a second time: unfolded normalisation, and padding through a bigger canvas."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel = weight.shape[-1]
        groups = x.shape[1] // weight.shape[1]
        size = x.shape[-1]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        canvas = torch.zeros(*x.shape[:2], size + total, size + total)
        canvas[..., total // 2 : total // 2 + size, total // 2 : total // 2 + size] = x
        return nn.functional.conv2d(canvas, weight, stride=stride, groups=groups)

    def norm(x: Tensor, name: str) -> Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        return nn.functional.batch_norm(x, *(state[f"{name}.{key}"] for key in keys), eps=1e-3)

    x = norm(conv(pixels, "_conv_stem", 2), "_bn0").clamp(0, 6)
    i = 0
    for stage in stages:
        for repeat in range(stage.repeats):
            stride = stage.stride if repeat == 0 else 1
            y = x
            if stage.expand > 1:
                y = norm(conv(y, f"_blocks.{i}._expand_conv"), f"_blocks.{i}._bn0").clamp(0, 6)
            y = norm(conv(y, f"_blocks.{i}._depthwise_conv", stride), f"_blocks.{i}._bn1").clamp(0, 6)
            y = norm(conv(y, f"_blocks.{i}._project_conv"), f"_blocks.{i}._bn2")
            x = x + y if stride == 1 and x.shape == y.shape else y
            i += 1
    x = norm(conv(x, "_conv_head"), "_bn1").clamp(0, 6).mean((2, 3))
    return x @ state["_fc.weight"].T + state["_fc.bias"]


@pytest.mark.parametrize("side", [32, 33, 50])
def test_folding_and_padding_change_no_number(side: int) -> None:
    state = random_checkpoint()
    network = EfficientNetLite(TINY, stem=8, classes=5).eval()
    network.load_state_dict(fold(state))
    pixels = torch.randn(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), by_the_paper(state, pixels), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [7, 8, 15])
def test_same_padding_rounds_up_and_puts_the_odd_pixel_last(size: int) -> None:
    conv = SameConv2d(1, 1, 3, stride=2, bias=False)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        out = conv(torch.ones(1, 1, size, size))
    assert out.shape[-1] == -(-size // 2)
    # With an even size all padding stands at the end, so the first window is whole.
    assert out[0, 0, 0, 0] == (9.0 if size % 2 == 0 else 4.0)


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"something": torch.zeros(1)}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"not a checkpoint")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(ModelSourceError, match=name):
            load_network(tmp_path / name)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"_conv_stem.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ModelSourceError):
        load_network(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_labels_are_the_likeliest_classes_best_first(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\ntree\n")
    classifier = PictureClassifier(tmp_path)
    (labels,) = classifier.label_rows(np.array([[0.2, 0.7999, 0.0001]], dtype=np.float32))
    assert [(label.name, label.score) for label in labels] == [("dog", 0.7999), ("cat", 0.2)]


def test_names_are_unique_and_carry_their_definition(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("crane\ncrane\ntench\n")
    (tmp_path / "definitions.txt").write_text("a large bird\na machine that lifts\na fish\n")
    names = class_names(tmp_path)
    assert names == ("crane (a large bird)", "crane (a machine that lifts)", "tench")
    assert class_phrases(tmp_path)["tench"] == "tench, a fish"


def test_a_dog_is_called_a_dog(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("".join(f"class {i}\n" for i in range(1000)))
    names = class_names(tmp_path)
    assert (names[222], names[15], names[999]) == ("class 222 dog", "class 15 bird", "class 999")


def test_missing_files_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="models pull efficientnet-lite0"):
        class_names(tmp_path)
    with pytest.raises(ModelSourceError, match="models pull efficientnet-lite0"):
        _ = PictureClassifier(tmp_path).network


@pytest.mark.parametrize("size", [(1, 1), (5, 900), (640, 480)])
def test_any_shape_is_cropped_to_the_network_s_square(size: tuple[int, int]) -> None:
    assert crop(Image.new("RGB", size, "red")).size == (224, 224)
    assert crop(Image.new("RGB", size, "red")).getpixel((100, 100)) == (255, 0, 0)


@pytest.mark.models
def test_the_real_weights_know_a_cat() -> None:
    data = pytest.importorskip("skimage.data")
    from deepwell import models

    classifier = PictureClassifier(models.folder("efficientnet-lite0"))
    cat, rocket = (classifier.labels(Image.fromarray(pixels)) for pixels in (data.chelsea(), data.rocket()))
    assert "cat" in cat[0].name
    assert {label.name for label in rocket[:3]} & {"missile", "projectile"}
