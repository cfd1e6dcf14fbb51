import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FIND = """
import sys
from pathlib import Path
from tracer.folders import emoji_world
from tracer.prompts import load_prompts
from tracer.scenes import sprite_of
assert Path(sys.argv[1]) in emoji_world().parents, emoji_world()
sprite_of("cat", None)
print(len(load_prompts("attend-and-excite-templates")))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_the_packages_and_the_emoji_world_and_nothing_else(wheel):
    names = wheel.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"tracer", "regulate", "metrics", "analysis"}
    assert {"tracer/schema.sql", "tracer/views.sql", "tracer/data/emoji/atlas.png", "tracer/data/emoji/NOTICE"} <= set(
        names
    )
    assert "tracer/data/emoji/sd/tokenizer/tokenizer.json" in names
    assert not [name for name in names if name.startswith("tracer/data/emoji/make")]


def test_an_installed_wheel_finds_its_data_in_an_empty_folder(wheel, tmp_path):
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    wheel.extractall(installed)
    elsewhere.mkdir()
    command = [sys.executable, "-c", FIND, str(installed)]
    paths = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=elsewhere, env=paths, check=True, capture_output=True, text=True)
    assert done.stdout == "276\n"
