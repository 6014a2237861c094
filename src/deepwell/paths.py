"""Where Deepwell keeps things, and the environment variables that move them.

``DEEPWELL_LIBRARY`` the default library, ``DEEPWELL_MODELS`` the folder of models, ``DEEPWELL_KEYS`` the file of the
server's keys; without them the platform's own data folder: ``~/.local/share/deepwell`` on Linux,
``~/Library/Application Support`` on a Mac, ``%LOCALAPPDATA%`` on Windows.
"""

import os
from pathlib import Path


def _data_folder() -> Path:
    from platformdirs import user_data_path

    return user_data_path("deepwell", appauthor=False)


def default_library() -> Path:
    """The library used when none is named."""
    named = os.environ.get("DEEPWELL_LIBRARY")
    return Path(named).expanduser() if named else _data_folder() / "library"


def models_folder() -> Path:
    """The folder that holds pulled models, one folder each."""
    named = os.environ.get("DEEPWELL_MODELS")
    return Path(named).expanduser() if named else _data_folder() / "models"


def key_file() -> Path:
    """The file that holds hashes of the server's API keys."""
    named = os.environ.get("DEEPWELL_KEYS")
    return Path(named).expanduser() if named else _data_folder() / "keys.json"


def default_data() -> Path | None:
    """Public data sets for benchmarks (``DEEPWELL_DATA``, else ``../shared/data`` beside the checkout), if there."""
    named = os.environ.get("DEEPWELL_DATA")
    place = Path(named) if named else Path(__file__).parents[3] / "shared" / "data"
    return place if place.is_dir() else None
