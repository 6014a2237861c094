"""Pictures that look alike lie near each other, one by one or in batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from deepwell.errors import UnreadableFileError, UsageError
from deepwell.library.encoders.efficientnet import DIM, EfficientNetEncoder, load
from deepwell.library.protocols import ImageEncoder
from deepwell.library.senses.efficientnet import EfficientNetLite
from deepwell.library.senses.labels import PictureClassifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the right shape with random weights, in the published layout (the folded one, unfolded)."""
    path = tmp_path_factory.mktemp("efficientnet-lite0")
    torch.manual_seed(0)
    network = EfficientNetLite()
    state: dict[str, torch.Tensor] = {}

    def put(conv: str, norm: str, module: torch.nn.Conv2d) -> None:
        channels = module.out_channels
        fan = module.weight[0].numel()
        state[f"{conv}.weight"] = torch.randn_like(module.weight) * (2 / fan) ** 0.5
        state[f"{norm}.weight"], state[f"{norm}.bias"] = torch.ones(channels), torch.zeros(channels)
        state[f"{norm}.running_mean"], state[f"{norm}.running_var"] = torch.zeros(channels), torch.ones(channels)

    put("_conv_stem", "_bn0", network.stem)
    for i, block in enumerate(network.blocks):
        if block.expand is not None:
            put(f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", block.expand)
        put(f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", block.depthwise)
        put(f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", block.project)
    put("_conv_head", "_bn1", network.head)
    state["_fc.weight"], state["_fc.bias"] = torch.randn(1000, DIM) / DIM**0.5, torch.zeros(1000)
    torch.save(state, path / "weights.pth")
    (path / "labels.txt").write_text("".join(f"class {i}\n" for i in range(1000)))
    return path


def picture(path: Path, seed: int, size: tuple[int, int] = (320, 240)) -> Path:
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(c) for c in rng.integers(0, 255, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, r = rng.integers(0, 300), rng.integers(0, 220), rng.integers(5, 60)
        draw.ellipse((x, y, x + r, y + r), tuple(int(c) for c in rng.integers(0, 255, 3)))
    image.save(path)
    return path


def test_the_same_picture_is_nearest_also_when_saved_again_smaller(folder: Path, tmp_path: Path) -> None:
    encoder = load(folder, None)
    assert isinstance(encoder, ImageEncoder)
    paths = [picture(tmp_path / f"{i}.png", i) for i in range(3)]
    with Image.open(paths[0]) as image:
        image.resize((240, 180)).save(tmp_path / "again.jpg", quality=90)
    rows = encoder.encode_images([*paths, tmp_path / "again.jpg"])
    assert rows.shape == (4, DIM)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert int((rows[:3] @ rows[3]).argmax()) == 0


def test_batches_change_nothing(folder: Path, tmp_path: Path) -> None:
    encoder = EfficientNetEncoder(folder)
    paths = [picture(tmp_path / f"{i}.png", i, (64, 64)) for i in range(18)]
    together = encoder.encode_images(paths)
    np.testing.assert_allclose(together[17], encoder.encode_images(paths[17:])[0], atol=1e-4)
    assert encoder.encode_images([]).shape == (0, DIM)


def test_the_classifier_sees_with_the_same_features(folder: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 1)
    with Image.open(path) as image:
        probabilities, features = PictureClassifier(folder).look([image.convert("RGB")])
    assert probabilities.sum() == pytest.approx(1, abs=1e-4)
    (row,) = EfficientNetEncoder(folder).encode_images([path])
    np.testing.assert_allclose(row, features[0] / np.linalg.norm(features[0]), atol=1e-4)


def test_the_fingerprint_follows_the_weights(folder: Path, tmp_path: Path) -> None:
    encoder = EfficientNetEncoder(folder)
    (tmp_path / "weights.pth").write_bytes((folder / "weights.pth").read_bytes())
    assert EfficientNetEncoder(tmp_path).fingerprint == encoder.fingerprint
    (tmp_path / "weights.pth").write_bytes((folder / "weights.pth").read_bytes()[:-8] + b"different")
    assert EfficientNetEncoder(tmp_path).fingerprint != encoder.fingerprint


def test_a_file_that_is_no_picture(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(UnreadableFileError, match=r"a\.png"):
        EfficientNetEncoder(folder).encode_images([tmp_path / "a.png"])


def test_the_vectors_cannot_be_shortened(folder: Path) -> None:
    assert load(folder, None, dim=DIM).dim == DIM
    with pytest.raises(UsageError):
        load(folder, None, dim=64)
