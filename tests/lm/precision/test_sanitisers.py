"""The tests of FP8 once more, with sources that watch every access to memory and every overflow."""

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from deepwell.lm.precision.native import library as native

from .. import sanitising

PLUGIN = """
from pathlib import Path
from deepwell.lm.precision.native import library

library.__file__ = str(Path(__file__).parent / "library.py")
library._built.cache_clear()
assert library.library() is not None
"""


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.skipif(native.library() is None, reason="the rounding was not built")
def test_no_access_is_out_of_bounds_and_no_sum_overflows(tmp_path: Path) -> None:
    sanitising.build(Path(native.__file__).parent, tmp_path / f"_tiles{EXTENSION_SUFFIXES[0]}")
    here = Path(__file__).parent
    sanitising.run([here / "test_fp8_tiles.py", here / "test_fp8_training.py"], PLUGIN, tmp_path)
