"""The training loop: what is stopped and goes on takes the steps that an unbroken training takes."""

import importlib.util

import pytest
import torch
from torch import nn

from tracer.folders import emoji_world


@pytest.fixture(scope="module")
def loop():
    spec = importlib.util.spec_from_file_location("emoji_loop_script", emoji_world() / "make" / "loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    torch.set_flush_denormal(False)


@pytest.fixture
def trained(loop, tmp_path):
    """Train a line of two numbers in a folder of its own, as far as told."""
    schedule = loop.Schedule(steps=60, rate=0.05, batch=1, warmup=5)

    def train(name, until=None, fail_at=None):
        model = nn.Linear(2, 1)
        for parameter in model.parameters():
            nn.init.ones_(parameter)

        def loss_of(step, chance):
            if step == fail_at:
                raise KeyboardInterrupt
            return model(torch.randn(4, 2, generator=chance)).square().mean()

        return loop.train(model, loss_of, schedule, tmp_path / name, until=until)

    return train


def test_a_training_in_parts_takes_the_steps_of_an_unbroken_one(trained):
    whole = trained("whole")
    trained("parts", until=20)
    parts = trained("parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not torch.equal(whole["weight"], torch.ones(1, 2))


def test_steps_that_are_taken_again_are_logged_once(trained, tmp_path):
    trained("killed", until=20)
    with pytest.raises(KeyboardInterrupt):
        trained("killed", fail_at=50)  # logged step 40, kept no checkpoint of it
    log = tmp_path / "killed" / "loss.csv"
    assert [row.split(",")[0] for row in log.read_text().splitlines()] == ["step", "20", "40"]
    trained("killed")
    assert [row.split(",")[0] for row in log.read_text().splitlines()] == ["step", "20", "40", "60"]


def test_a_part_that_is_done_leaves_its_checkpoint_alone(trained, tmp_path):
    trained("trunk", until=20)
    path = tmp_path / "trunk" / "checkpoint.safetensors"
    before = path.stat()
    trained("trunk", until=20)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
