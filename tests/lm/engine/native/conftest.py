import pytest

from deepwell.lm.engine.native.library import Library, built

if not built():
    collect_ignore_glob = ["test_*.py"]  # no C compiler was here when the package was installed


@pytest.fixture(params=["avx2", "generic"])
def library(request: pytest.FixtureRequest) -> Library:
    """Each build that this processor can run."""
    found = built().get(request.param)
    if found is None or (request.param == "avx2" and not found.suits):
        pytest.skip(f"no {request.param} build runs here")
    return found
