"""Files of tensors: every dtype to the bit, every layout without holes, every change found."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from deepwell.errors import TrainingError, UsageError
from deepwell.lm.training.pieces import KINDS, MappedTensors, Place, check_piece, fits, lay_out, write_piece


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def any_bits(dtype: torch.dtype, *shape: int) -> Tensor:
    """Random bits, so NaNs of all payloads, infinities and subnormals too."""
    count = torch.Size(shape).numel()
    data = torch.randint(
        0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    return (data & 1 if dtype is torch.bool else data).view(dtype).reshape(shape)


def written(folder: Path, tensors: dict[str, Tensor], **layout: int) -> MappedTensors:
    made = lay_out(tensors, **layout)
    for piece in made:
        sha256 = write_piece(folder, piece, (tensors[place.name] for place in piece.places))
        check_piece(folder / piece.file, piece.size, sha256)
    return MappedTensors(folder, {piece.file: piece.places for piece in made})


def test_every_dtype_and_shape_comes_back_to_the_bit(tmp_path: Path) -> None:
    tensors = {}
    for name, dtype in KINDS.items():
        for shape in ((), (1,), (0, 4), (3, 5), (2, 3, 7)):
            tensors[f"{name}.{shape}"] = any_bits(dtype, *shape)
    mapped = written(tmp_path, tensors, piece_bytes=200)
    assert len(mapped) == len(tensors)
    assert set(mapped) == set(tensors)
    for name, tensor in tensors.items():
        assert mapped[name].shape == tensor.shape, name
        assert mapped[name].dtype == tensor.dtype, name
        assert bits(mapped[name]) == bits(tensor), name


def test_the_payload_of_a_nan_is_kept(tmp_path: Path) -> None:
    payload = torch.tensor([0x7FC12345, 0x7F812345 - 2**32, -1], dtype=torch.int64).to(torch.int32).view(torch.float32)
    assert payload.isnan().all()
    assert bits(written(tmp_path, {"x": payload})["x"]) == bits(payload)


def test_views_and_parameters(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {"turned": whole.t(), "part": whole[1:3, ::2], "wide": whole[0].expand(3, 6)}
    tensors["learned"] = torch.nn.Parameter(whole)
    mapped = written(tmp_path, tensors)
    assert all(torch.equal(mapped[name], tensor) for name, tensor in tensors.items())


def test_a_piece_is_a_safetensors_file(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.tensor(2.5, dtype=torch.bfloat16)}
    written(tmp_path, tensors)
    by_others = load_file(tmp_path / "piece-00000.safetensors")
    assert all(torch.equal(by_others[name], tensor) for name, tensor in tensors.items())


def test_pieces_have_a_size_and_processes_an_equal_share() -> None:
    tensors = {f"t{n}": torch.empty(n + 1, 100) for n in range(20)}
    alone = lay_out(tensors, piece_bytes=4000)
    assert {place.name for piece in alone for place in piece.places} == set(tensors)
    # The first tensors fill a piece; a tensor that is larger than a piece has one of its own.
    assert all(sum(p.end - p.begin for p in piece.places) <= 4000 or len(piece.places) == 1 for piece in alone)
    shared = lay_out(tensors, 3)
    share = [sum(p.end - p.begin for piece in shared if piece.owner == n for p in piece.places) for n in range(3)]
    assert max(share) - min(share) <= max(tensor.nbytes for tensor in tensors.values())
    assert [piece.file for piece in shared] == sorted({piece.file for piece in shared})
    assert lay_out(tensors, 3) == shared


def test_more_processes_than_tensors() -> None:
    assert [piece.owner for piece in lay_out({"x": torch.ones(2)}, 4)] == [0]
    assert lay_out({}, 2) == []


def test_a_dtype_that_cannot_be_kept_is_named() -> None:
    with pytest.raises(UsageError, match=r"wave has the dtype torch\.complex64"):
        lay_out({"wave": torch.zeros(2, dtype=torch.complex64)})


def test_changes_are_found(tmp_path: Path) -> None:
    (piece,) = lay_out({"x": torch.arange(10)})
    sha256 = write_piece(tmp_path, piece, [torch.arange(10)])
    path = tmp_path / piece.file
    check_piece(path, piece.size, sha256)
    with pytest.raises(TrainingError, match="truncated"):
        check_piece(path, piece.size + 1, sha256)
    with pytest.raises(TrainingError, match="damaged"):
        check_piece(path, piece.size, "0" * 64)
    path.unlink()
    with pytest.raises(TrainingError, match="is missing"):
        check_piece(path, piece.size, sha256)


@pytest.mark.parametrize(
    "place",
    [
        Place("x", "F32", (2,), 8, 15), Place("x", "F32", (2,), 6, 14), Place("x", "F32", (-2,), 8, 0),
        Place("x", "F32", (2,), 96, 104), Place("x", "C64", (1,), 8, 16), Place("x", "F32", (-1, -2), 8, 16),
        Place("x", "F32", (2,), -8, 0),
    ],
)  # fmt: skip
def test_places_that_no_file_can_have(place: Place) -> None:
    assert fits(Place("x", "F32", (2,), 8, 16), 100)
    assert not fits(place, 100)
