"""The tests of the compiled kernels once more, with sources that watch every access to memory and every overflow."""

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from deepwell.lm.model.native import library as native

from .. import sanitising

PLUGIN = """
from pathlib import Path
from deepwell.lm.model import products
from deepwell.lm.model.native import library

library.__file__ = str(Path(__file__).parent / "library.py")
library._built.cache_clear()
assert library.library() is not None
# Not the buffer that is kept, which is larger than it need be.
products._room = lambda weight, dtype: weight.new_empty(weight.shape, dtype=dtype)
"""
AVX512_BF16 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma", "-Wno-unused-function"]


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.skipif(native.library() is None, reason="the kernels were not built, or do not suit this processor")
def test_no_access_is_out_of_bounds_and_no_sum_overflows(tmp_path: Path) -> None:
    sanitising.build(Path(native.__file__).parent, tmp_path / f"_training{EXTENSION_SUFFIXES[0]}", *AVX512_BF16)
    sanitising.run([Path(__file__).parent / "test_products_native.py"], PLUGIN, tmp_path, threads=2)
