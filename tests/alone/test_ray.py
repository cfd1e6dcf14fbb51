"""A Ray cluster of two workers, one of which is killed on the way: the tables are those of one process.

Alone on the machine, after all other tests: Ray gives up if its own services take more than 15 seconds to begin.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import small_runs

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TRIES = 3  # to begin a cluster


@pytest.fixture
def model(tiny_pipe, tmp_path) -> str:
    tiny_pipe.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def environment() -> dict[str, str]:
    """Where processes find our code."""
    return os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'reference'}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",  # a cluster of this test alone
    }


@pytest.fixture
def cluster(environment):
    """The address of a cluster with two CPUs."""
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [*ray, "start", "--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    for attempt in range(TRIES):
        began = subprocess.run(start, env=environment, capture_output=True, text=True, timeout=120)
        if not began.returncode or attempt == TRIES - 1:
            break
        subprocess.run([*ray, "stop", "--force"], env=environment, capture_output=True)
    assert not began.returncode, began.stderr
    yield f"127.0.0.1:{port}"
    subprocess.run([*ray, "stop", "--force"], env=environment, capture_output=True)


def test_a_cluster_whose_worker_dies_comes_to_the_tables_of_one_process(cluster, environment, model, tmp_path):
    eight, quiet = small_runs.eight(model), small_runs.Quiet()
    quiet(eight, tmp_path / "alone", small_runs.BEGUN)  # with one thread, as on Ray
    alone = quiet(eight, tmp_path / "alone")
    out = tmp_path / "ray"
    out.mkdir()
    command = [sys.executable, str(HERE / "on_ray.py"), cluster, model, str(out)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert not ran.returncode, ran.stderr
    assert (out / "killed").is_file()
    assert pd.read_pickle(out / "board.pickle").equals(alone.parts[0].board)
