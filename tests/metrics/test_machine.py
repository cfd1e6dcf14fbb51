"""What a run takes: passes counted exactly, memory that is a run's own, time by the given clock."""

import subprocess
import sys
import time

import pytest
import torch

from metrics import machine
from metrics.machine import counting, hardware, load_average, timed


def test_every_pass_is_counted_and_the_dear_ones_apart():
    layer = torch.nn.Linear(2, 2)
    with counting(layer) as count:
        with torch.no_grad():
            layer(torch.ones(1, 2))
            layer(torch.ones(1, 2))
        layer(torch.ones(1, 2))
    layer(torch.ones(1, 2))
    assert (count(), count.passes, count.with_gradient) == (3, 3, 1)


def test_nothing_of_the_count_remains_when_the_block_raises():
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(KeyboardInterrupt), counting(layer):
        raise KeyboardInterrupt
    assert not layer._forward_hooks


def test_a_pipeline_passes_once_a_step(tiny_pipe):
    def generate(steps: int) -> object:
        generator = torch.Generator().manual_seed(0)
        return tiny_pipe("a cat", num_inference_steps=steps, generator=generator, output_type="latent")

    with counting(tiny_pipe.unet) as count:
        timing = timed(lambda: generate(3), "cpu", count, time.perf_counter)
        generate(2)
    assert (timing.passes, count.passes, count.with_gradient) == (3, 5, 0)
    assert timing.process_seconds > 0
    assert timing.seconds > 0


def test_time_is_read_off_the_given_clock():
    now = iter([10.0, 12.5])
    assert timed(lambda: None, "cpu", None, lambda: next(now)).seconds == 2.5


def test_process_seconds_leave_out_what_is_waited_for():
    timing = timed(lambda: time.sleep(0.2), "cpu", None, time.perf_counter)
    assert timing.seconds >= 0.2
    assert timing.process_seconds < 0.15


HUNGRY = """
import time
import numpy as np
from metrics.machine import timed
hungry = timed(lambda: np.ones(25_000_000), "cpu", None, time.perf_counter)  # 200 MB, gone afterwards
modest = timed(lambda: np.ones(10), "cpu", None, time.perf_counter)
print(hungry.memory, hungry.peak_bytes, modest.peak_bytes, sep=",")
"""  # in a process of its own: one that has held much reuses it


def test_a_run_has_the_peak_of_its_own_memory():
    done = subprocess.run([sys.executable, "-c", HUNGRY], capture_output=True, text=True, check=True)
    memory, hungry, modest = done.stdout.strip().split(",")
    if memory != "resident in a run":
        pytest.skip("this system keeps the process's peak only")
    assert int(hungry) - int(modest) > 150e6


def test_where_the_peak_cannot_be_set_back_that_is_said(monkeypatch):
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError

    monkeypatch.setattr(machine.Path, "write_text", refuse)
    timing = timed(lambda: None, "cpu", None, time.perf_counter)
    assert timing.memory == "resident since the process began"
    assert timing.peak_bytes > 50e6  # torch alone


def test_the_machine_has_a_name_and_a_load():
    assert hardware("cpu")
    assert (load_average() or 0) >= 0
