"""SigLIP 2's loading code against transformers' own, on a tiny network with random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepwell.errors import ModelSourceError, UsageError
from deepwell.library.encoders.siglip import SiglipEncoder, load
from deepwell.library.protocols import ImageEncoder, TextEncoder

transformers = pytest.importorskip("transformers")
WORDS = ["<pad>", "<eos>", "<unk>", "a", "cat", "dog", "on", "the", "sea"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import SiglipConfig, SiglipModel

    path = tmp_path_factory.mktemp("siglip2-tiny")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config=shape | {"vocab_size": len(WORDS), "max_position_embeddings": 16, "projection_size": 32},
        vision_config=shape | {"image_size": 32, "patch_size": 8},
    )
    SiglipModel(config).save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.save(str(path / "tokenizer.json"))
    shaping = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
    (path / "preprocessor_config.json").write_text(json.dumps(shaping))
    return path


def test_words_and_pictures_as_transformers_computes_them(folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import SiglipModel

    Image.effect_noise((50, 40), 80).convert("RGB").save(tmp_path / "a.png")
    encoder = load(folder, None)
    assert isinstance(encoder, TextEncoder)
    assert isinstance(encoder, ImageEncoder)
    assert encoder.dim == 32
    words = encoder.encode(["A cat", "a dog on the sea"])
    (picture,) = encoder.encode_images([tmp_path / "a.png"])

    network = SiglipModel.from_pretrained(folder).eval()
    with Image.open(tmp_path / "a.png") as image:
        small = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float32) / 127.5 - 1
    pixels = torch.from_numpy(small.transpose(2, 0, 1))[None]
    ids = torch.tensor([[3, 4, 1] + [0] * 13, [3, 5, 6, 7, 8, 1] + [0] * 10])
    with torch.no_grad():
        out = network(input_ids=ids, pixel_values=pixels)
    np.testing.assert_allclose(words, out.text_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(picture, out.image_embeds[0].numpy(), atol=1e-5)


def test_batches_and_cut_texts(folder: Path) -> None:
    encoder = SiglipEncoder(folder, "tiny")
    texts = ["a cat"] * 20 + ["the dog " * 40]
    rows = encoder.encode(texts, query=True)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(rows[0], rows[19], atol=1e-5)
    assert encoder.encode([]).shape == (0, 32)


def test_an_incomplete_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelSourceError, match="models pull"):
        SiglipEncoder(tmp_path, "siglip2-base")
    with pytest.raises(UsageError):
        load(folder, None, dim=8)
