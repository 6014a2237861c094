"""What every test gets: no network, no models that happen to be on this machine, one thread, no clock in hypothesis."""

import os
import socket

# Before torch or OpenBLAS is loaded: two xdist workers with two threads each are slower than two with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before triton is loaded: GPU kernels run in its interpreter, on any machine.
os.environ.setdefault("TRITON_INTERPRET", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("deepwell", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("deepwell"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "deepwell")

STARTER = ("all-minilm-l6-v2", "whisper-tiny", "efficientnet-lite0", "smollm2-135m-instruct")


class NetworkUsedError(RuntimeError):
    """A test tried to leave this machine."""


def _is_here(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True  # a Unix socket is a path
    host = str(address[0])
    return host in ("localhost", "::1", "", "0.0.0.0") or host.startswith("127.")


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Connections to other machines fail. ``test_offline.py`` cuts the network for good, for other processes too."""
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if not _is_here(address):
            raise NetworkUsedError(f"a test connected to {address}")
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        if not _is_here(address):
            raise NetworkUsedError(f"a test connected to {address}")
        return connect_ex(self, address)

    def guarded_look_up(host: Any, *args: Any, **more: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and not _is_here((name,)) and not str(name).endswith(".invalid"):
            raise NetworkUsedError(f"a test looked up {name}")
        return look_up(host, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield


@pytest.fixture(autouse=True)
def _own_folders(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A test sees neither the user's library nor, unless it is marked ``models``, the models on this machine."""
    nowhere = tmp_path_factory.getbasetemp() / "nowhere"
    monkeypatch.setenv("DEEPWELL_LIBRARY", str(nowhere / "library"))
    if request.node.get_closest_marker("models") is None:
        monkeypatch.setenv("DEEPWELL_MODELS", str(nowhere / "models"))
        return
    from deepwell.paths import models_folder

    absent = [name for name in STARTER if not (models_folder() / name).is_dir()]
    if absent:
        pytest.skip(f"needs {', '.join(absent)}; run: deepwell models pull starter")


@pytest.fixture
def models() -> Path:
    """The folder of the pulled models; only for tests marked ``models``."""
    from deepwell.paths import models_folder

    return models_folder()
