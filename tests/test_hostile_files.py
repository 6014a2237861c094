"""Files made to hurt, through the command line: a clear line for each, the good ones found, memory in bounds.

The folder is made, and the commands are run, by ``benchmarks/hostile.py``, which does the same with larger giants.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

REASONS = {
    "bomb.docx": "unpacks from 0.1 to 64 MiB",
    "bomb.png": "would unpack to 20000 x 20000 pixels",
    "circle": "a symbolic link in a circle",
    "dangling.txt": "a symbolic link to nothing",
    "encrypted.pdf": "encrypted with a password",
    "junk.pdf": "damaged or is not what its name says",
    "one line.txt": "has 67 MiB, above the limit of 64 MiB for text",
    "secret.txt": "no permission",
    "ten hours promised.wav": "its header promises 10:00:00, the file holds 0:00:01",
    "text named.png": "not a picture this machine can read",
    "truncated.png": "damaged or incomplete",
    "zero.png": "empty (0 bytes)",
    "zero.txt": "empty (0 bytes)",
}


@pytest.fixture(scope="module")
def hostile() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "hostile.py"
    spec = importlib.util.spec_from_file_location("hostile", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hostile"] = module  # its dataclass looks its module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(hostile: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made: Path = tmp_path_factory.mktemp("hostile") / "files"
    hostile.make(made, small=True)
    yield made
    hostile.unlock(made)


def test_each_bad_file_is_one_clear_line_and_the_rest_goes_on(hostile: ModuleType, folder: Path) -> None:
    library = folder.parent / "library"
    if hostile.bound_by_permissions() is None:
        pytest.skip("as root, and setpriv is not here: permissions bind nobody")
    added = hostile.deepwell("add", folder, library=library)
    assert added.status == 3, added.err
    lines = [line for line in added.err.splitlines() if line.startswith("failed  ")]
    for name, reason in REASONS.items():
        (line,) = [line for line in lines if f"/{name}: " in line]
        assert reason in line
        assert line.endswith(")"), f"it does not say what to do: {line}"
        assert name not in line.partition(": ")[2] or name == "circle", f"it says the name twice: {line}"
    assert len(lines) == len(REASONS)
    assert [line for line in added.err.splitlines() if line.startswith("unseen")] == [
        f"unseen  {folder}/locked: no permission to look at it (Change its permissions, then: deepwell sync)"
    ]
    assert "1 file could tell more with yamnet; run: deepwell models pull yamnet" in added.out
    assert "Traceback" not in added.err
    assert added.peak < 2**31

    status = json.loads(hostile.deepwell("status", "--json", library=library).out)
    assert status["documents"] == len(hostile.GOOD) + 1  # and the silent recording, which is a whole file
    asked = {"barometer": "good.md", "April": "good.csv", "lighthouse": "pdf named.txt", "wine": "caf\\xe9.txt"}
    for words, name in asked.items():
        found = json.loads(hostile.deepwell("search", words, "--json", library=library).out)["hits"]
        assert name in [Path(hit["path"]).name for hit in found], words

    again = hostile.deepwell("sync", "--json", library=library)
    report: dict[str, Any] = json.loads(again.out)
    assert again.status == 3  # the links and the locked folder are still there
    assert (report["added"], report["updated"], report["removed"]) == (0, 0, 0)
    assert report["passages"] == 0 and report["bytes_read"] == 0


def test_no_permission_to_begin_with_deletes_nothing(hostile: ModuleType, tmp_path: Path) -> None:
    if hostile.bound_by_permissions() is None:
        pytest.skip("as root, and setpriv is not here: permissions bind nobody")
    folder, library = tmp_path / "files", tmp_path / "library"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a.txt").write_text("The lantern was cleaned with spirit of wine.")
    (folder / "b.txt").write_text("Oil.")
    assert hostile.deepwell("add", folder, library=library).status == 0
    try:
        os.chmod(folder / "inner", 0)  # noqa: PTH101
        assert hostile.deepwell("sync", library=library).status == 3
        assert json.loads(hostile.deepwell("status", "--json", library=library).out)["documents"] == 2
    finally:
        os.chmod(folder / "inner", 0o700)  # noqa: PTH101
