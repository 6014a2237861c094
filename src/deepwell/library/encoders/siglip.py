"""SigLIP and SigLIP 2 through transformers: words and pictures in one space, trained on pairs of them.

SigLIP 2 (https://arxiv.org/abs/2502.14786) reads more than a hundred languages. One encoder object encodes both sides,
so words find pictures directly and ConSE is not needed. Text must be lower case and padded to the 64 tokens that the
network was trained with, because it is pooled from the last position, and that is what its published results assume.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepwell.errors import MissingExtraError, ModelSourceError, UsageError
from deepwell.library.encoders.fingerprint import fingerprint
from deepwell.library.encoders.recipe import read_json
from deepwell.library.encoders.vectors import unit
from deepwell.library.senses.pictures import load_rgb

if TYPE_CHECKING:
    from deepwell.models import ModelInfo

PREPROCESSING = 1
"""Raised when the same words or picture would give other numbers."""

_BATCH = 16
_INSTALL = "Run: pip install 'deepwell[hub]'"


class SiglipEncoder:
    """A ``TextEncoder`` and an ``ImageEncoder``. Thread-safe; the network loads at the first call.

    Args:
        folder: As a hub publishes it: ``config.json``, ``model.safetensors``, ``tokenizer.json``,
            ``preprocessor_config.json``.
        name: As in the catalogue.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._folder = folder
        config = read_json(folder / "config.json")
        text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
        for missing in (name for name in ("model.safetensors", "tokenizer.json") if not (folder / name).exists()):
            if missing != "model.safetensors" or not any(folder.glob("model-*.safetensors")):
                raise ModelSourceError(f"{folder} has no {missing}", hint=f"Run: deepwell models pull {self.name}")
        # Checkpoints leave out what equals the architecture's defaults.
        self.dim = int(text.get("projection_size") or text.get("hidden_size") or 768)
        self._tokens = int(text.get("max_position_embeddings") or 64)
        self._side = int(vision.get("image_size") or 224)
        shaping = read_json(folder / "preprocessor_config.json")
        self._mean = np.asarray(shaping.get("image_mean") or [0.5] * 3, dtype=np.float32)
        self._std = np.asarray(shaping.get("image_std") or [0.5] * 3, dtype=np.float32)
        files = [path.name for path in folder.glob("*.safetensors")]
        self.fingerprint = fingerprint(
            folder,
            [*files, "tokenizer.json", "config.json", "preprocessor_config.json"],
            preprocessing=PREPROCESSING,
            dim=self.dim,
        )
        self._lock = threading.Lock()

    @cached_property
    def _network(self) -> Any:
        try:
            import torch
            from transformers import AutoModel
        except ImportError as error:
            raise MissingExtraError("SigLIP needs transformers and PyTorch", hint=_INSTALL) from error
        network = AutoModel.from_pretrained(self._folder, local_files_only=True, dtype=torch.float32)
        return network.eval().requires_grad_(False)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
        pad = next((p for p in ("<pad>", "[PAD]", "</s>", "<eos>") if tokenizer.token_to_id(p) is not None), None)
        if pad is None:
            raise ModelSourceError(f"{self._folder / 'tokenizer.json'} has no padding token")
        tokenizer.enable_truncation(self._tokens)
        tokenizer.enable_padding(length=self._tokens, pad_id=tokenizer.token_to_id(pad), pad_token=pad)
        return tokenizer

    def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        """Unit vectors [N, dim] of words; ``query`` changes nothing, both sides of a pair were trained alike."""
        del query
        import torch

        rows = np.empty((len(texts), self.dim), dtype=np.float32)
        with self._lock, torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                batch = [text.lower() for text in texts[start : start + _BATCH]]
                ids = torch.tensor([encoding.ids for encoding in self._tokenizer.encode_batch(batch)])
                rows[start : start + len(batch)] = _pooled(self._network.get_text_features(input_ids=ids))
        return unit(rows)

    def encode_images(self, images: Sequence[Path]) -> NDArray[np.float32]:
        """Unit vectors [N, dim] of pictures. Raises ``UnreadableFileError`` for the first that is not a whole one."""
        import torch

        rows = np.empty((len(images), self.dim), dtype=np.float32)
        for start in range(0, len(images), _BATCH):
            pixels = np.stack([self._pixels(path) for path in images[start : start + _BATCH]])
            with self._lock, torch.inference_mode():
                features = self._network.get_image_features(pixel_values=torch.from_numpy(pixels))
            rows[start : start + len(pixels)] = _pooled(features)
        return unit(rows)

    def _pixels(self, path: Path) -> NDArray[np.float32]:
        """[3, side, side]: the whole picture squeezed into a square, as SigLIP was trained, not a crop of it."""
        from PIL.Image import Resampling

        image = load_rgb(path, near=self._side).resize((self._side, self._side), Resampling.BILINEAR)
        values = np.asarray(image, dtype=np.float32) / 255.0
        return np.ascontiguousarray(((values - self._mean) / self._std).transpose(2, 0, 1))


def _pooled(features: Any) -> NDArray[np.float32]:
    """Transformers 5 wraps the features in an output object, 4 gives them bare."""
    tensor = features if hasattr(features, "numpy") else features.pooler_output
    return np.asarray(tensor.numpy(), dtype=np.float32)


def load(folder: Path, info: ModelInfo | None, *, dim: int | None = None) -> SiglipEncoder:
    """The entry point. SigLIP's vectors cannot be shortened."""
    encoder = SiglipEncoder(folder, info.name if info is not None else folder.name)
    if dim not in (None, encoder.dim):
        raise UsageError(f"{encoder.name} makes {encoder.dim} numbers, {dim} were asked for")
    return encoder
