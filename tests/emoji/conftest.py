"""The scripts that made the emoji world's networks import each other by name, from their own folder."""

import importlib
import sys
from pathlib import Path

import pytest

from tracer.folders import emoji_world


@pytest.fixture(scope="module")
def make_script():
    """Import scripts of ``data/emoji/make`` by name; afterwards nothing of that folder stays importable."""
    folder = emoji_world() / "make"
    sys.path.insert(0, str(folder))
    yield importlib.import_module
    sys.path.remove(str(folder))
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or ".").parent == folder:
            del sys.modules[name]
