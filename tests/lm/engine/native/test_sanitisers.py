"""The tests of this folder once more, with sources that watch every access to memory and every overflow."""

from pathlib import Path

import pytest

from deepwell.lm.engine.native import library as native

from ... import sanitising

PLUGIN = """
from pathlib import Path
import torch
from deepwell.lm.engine.native import library
from deepwell.lm.engine.pages import Pages

made = {file.stem[1:]: library.Library(file) for file in Path(__file__).parent.glob("_*.so")}
library.built = lambda: made
library.library.cache_clear()
# Each tensor by itself, so that what lies behind its end belongs to nobody.
Pages.take = lambda pages, *shape, dtype: torch.empty(shape, dtype=dtype)
"""


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_no_access_is_out_of_bounds_and_no_sum_overflows(tmp_path: Path) -> None:
    for name in native.built():
        more = ["-mavx2", "-mfma", "-mf16c"] if name == "avx2" else []
        sanitising.build(Path(native.__file__).parent, tmp_path / f"_{name}.so", *more)
    here = Path(__file__).parent
    tests = [here / f"test_{name}.py" for name in ("products", "operations", "experts", "runner")]
    sanitising.run(tests, PLUGIN, tmp_path)
