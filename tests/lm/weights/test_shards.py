"""One safetensors file: equal to the safetensors library's reading, and every damage refused by name."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deepwell.errors import ModelFileError
from deepwell.lm.weights import shards
from deepwell.lm.weights.shards import ShardReader, looks_like_pickle, pickle_error, read_header


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def _write(path: Path, header: Any, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _entry(begin: int, end: int, kind: str = "F32", shape: list[Any] | None = None) -> dict[str, Any]:
    return {"dtype": kind, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def test_reads_what_the_library_wrote(path: Path) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
    tensors = {str(kind): torch.randn(5, 3).to(kind) for kind in kinds} | {"empty": torch.zeros(0, 4)}
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert set(header) == set(tensors)
    with ShardReader(path) as reader:
        for name, tensor in tensors.items():
            values = reader.read(header[name])
            assert values.dtype == tensor.dtype
            assert torch.equal(values.float(), tensor.float())
            if len(tensor):
                assert torch.equal(reader.read(header[name], (1, 4)).float(), tensor[1:4].float())


def test_bands_cover_all_rows_and_keep_to_the_multiple(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(37, 4)
    save_file({"m": matrix}, path)
    monkeypatch.setattr(shards, "BAND", 16 * 10)
    header = read_header(path)
    with ShardReader(path) as reader:
        bands = [(begin, band.clone()) for begin, band in reader.bands(header["m"], multiple=4)]
    assert [begin for begin, _ in bands] == [0, 8, 16, 24, 32]
    assert torch.equal(torch.cat([band for _, band in bands]), matrix)


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda path: _write(path, {"a": _entry(0, 8), "b": _entry(8, 400)}, bytes(24)), "truncated: b ends at byte"),
        (lambda path: path.write_bytes(b"\x10\0\0\0"), "not a whole safetensors file"),
        (lambda path: path.write_bytes(b""), "not a whole safetensors file"),
        (lambda path: path.write_bytes((10**12).to_bytes(8, "little") + b"{}"), "its header has 1000000000000 bytes"),
        (lambda path: _write(path, {"a": _entry(0, 8)}, bytes(12)), "ends? at byte"),
        (lambda path: _write(path, b"{not json"), "damaged header"),
        (lambda path: _write(path, b"[" * 100_000), "damaged header"),
        (lambda path: _write(path, []), "not a JSON object"),
        (lambda path: _write(path, b'{"a": {}, "a": {}}'), "a is there twice"),
        (lambda path: _write(path, {"a": 3}), "the entry of a makes no sense"),
        (lambda path: _write(path, {"a": _entry(0, 8, shape=[-2])}, bytes(8)), "the entry of a makes no sense"),
        (lambda path: _write(path, {"a": _entry(0, 8, shape=[True, 2])}, bytes(8)), "the entry of a makes no sense"),
        (lambda path: _write(path, {"a": _entry(0, 8, shape=[3])}, bytes(8)), "a is F32 .3., and 8 bytes"),
        (lambda path: _write(path, {"a": _entry(0, 8), "b": _entry(4, 12)}, bytes(12)), "b overlaps"),
        (lambda path: _write(path, {"a": _entry(0, 8), "b": _entry(12, 20)}, bytes(20)), "b does not follow"),
        (lambda path: torch.save({"a": torch.zeros(2)}, path), "is a pickle"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is a pickle"),
        (lambda path: path.write_bytes(b"GGUF\x03\0\0\0"), "is a GGUF file"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: None, "is missing"),
    ],
)
def test_a_damaged_file_is_refused_by_name(path: Path, write: Callable[[Path], None], told: str) -> None:
    write(path)
    with pytest.raises(ModelFileError, match=told) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_a_pickle_is_never_opened(path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("the pickle ran",))

    torch.save(Trap(), path)
    assert looks_like_pickle(path.read_bytes()[:9])
    with pytest.raises(ModelFileError, match="runs what is in it"):
        read_header(path)
    assert "safetensors" in pickle_error(path).hint


@pytest.mark.parametrize("length", [0x180, 0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_looks_like_a_pickle_is_read(path: Path, length: int) -> None:
    header = json.dumps({"a": _entry(0, 8)})
    _write(path, header.ljust(length).encode(), bytes(8))
    assert path.read_bytes()[:2] == bytes([0x80, length >> 8])
    assert list(read_header(path)) == ["a"]


@pytest.mark.parametrize("protocol", range(2, 6))
def test_every_pickle_is_known(path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps({"a": torch.zeros(3)}, protocol=protocol))
    assert looks_like_pickle(path.read_bytes()[:9])


def test_a_file_that_shrinks_while_it_is_read_is_an_error(path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, path)
    header = read_header(path)
    with path.open("r+b") as file:
        file.truncate(500)
    with ShardReader(path) as reader, pytest.raises(ModelFileError, match="ends inside a"):
        reader.read(header["a"])


def test_numbers_that_are_no_weights_are_refused_when_read(path: Path) -> None:
    save_file({"a": torch.zeros(4, dtype=torch.int32)}, path)
    with ShardReader(path) as reader, pytest.raises(ModelFileError, match="a holds I32 numbers"):
        reader.read(read_header(path)["a"])


def test_a_file_that_is_gone_is_an_error(path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read"), ShardReader(path):
        pass


def test_whatever_is_cut_off_or_changed_in_a_header_is_an_error_and_no_crash(path: Path) -> None:
    save_file({"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16()}, path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for end in range(0, len(whole), 3):
        path.write_bytes(whole[:end])
        with pytest.raises(ModelFileError):
            read_header(path)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        changed = bytearray(whole)
        where, what = (int(torch.randint(0, most, (), generator=generator)) for most in (header, 256))
        changed[where] = what
        path.write_bytes(changed)
        try:
            tensors = read_header(path)
            with ShardReader(path) as reader:
                for tensor in tensors.values():
                    reader.read(tensor)
        except ModelFileError as error:
            assert str(path) in str(error)
