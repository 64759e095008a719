"""The user's cache folder, where the demonstration keeps what it has made."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """`hdraft` in the cache folder of the user, which need not be there yet."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home folder, as in some containers
        folder = Path(tempfile.gettempdir())
    return folder / "hdraft"
