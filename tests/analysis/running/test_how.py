"""On which device, by whom, with how many threads."""

import json
from types import SimpleNamespace

import pytest

from analysis.running import ray_engine
from analysis.running.how import How, check_device, first_threads, scoring_device, workers_of
from analysis.running.ledger import write_unit
from analysis.running.specification import Begun, begin


def test_a_device_of_a_cluster_need_not_be_here_and_scores_are_made_on_the_cpu_then():
    how = How(engine="ray", device="meta")
    check_device(how)
    assert scoring_device(how) == "cpu"
    assert scoring_device(How()) == "cpu"
    with pytest.raises(ValueError, match="device must be one that torch can compute on here, got 'meta'"):
        check_device(How(device="meta"))


@pytest.mark.parametrize(
    ("facts", "threads", "workers"),
    [
        ({}, 1, 8),
        ({"workers": 3}, 2, 3),
        ({"workers": 99}, 1, 99),
        ({"workers": 0}, 5, 0),
        ({"shard": (1, 2), "workers": 2}, 1, 2),
        ({"engine": "ray", "workers": 2}, 1, 2),
        ({"device": "meta"}, None, 8),
    ],
)
def test_the_first_call_shares_the_cores_out(facts, threads, workers, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("torch.get_num_threads", lambda: 5)
    how = How(**facts)
    assert (first_threads(how), workers_of(how, threads)) == (threads, workers)


def test_a_later_call_has_as_many_workers_as_there_are_cores_for(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert workers_of(How(), 4) == 2
    assert workers_of(How(), 99) == 1


def test_a_run_keeps_the_threads_of_its_first_call_on_the_cpu(tmp_path):
    assert begin(tmp_path, {}, None).threads is None
    assert begin(tmp_path, {}, 3) == begin(tmp_path, {}, 1) == Begun(3, ())
    assert begin(tmp_path, {}, None).threads is None
    assert json.loads((tmp_path / "env.json").read_text())["threads"] == 3


def test_a_run_that_does_not_say_so_has_the_threads_of_its_batches(tmp_path):
    begin(tmp_path, {}, None)
    write_unit(tmp_path, "a", [{"unit": "a", "seed": 0, "device": "cpu", "threads": 3}])
    assert begin(tmp_path, {}, 1).threads == 3


class Ray(SimpleNamespace):
    """A cluster with two cards and eight cores, to which nobody is connected."""

    connected = False

    def is_initialized(self):
        return self.connected

    def init(self, address, log_to_driver):
        self.connected = True

    def cluster_resources(self):
        assert self.connected
        return {"CPU": 8.0, "GPU": 2.0}

    def shutdown(self):
        self.connected = False


def test_a_cluster_says_for_how_many_workers_it_has_room(monkeypatch):
    ray = Ray()
    monkeypatch.setattr(ray_engine, "_ray", lambda: ray)
    assert workers_of(How(engine="ray"), 1) == 8
    assert workers_of(How(engine="ray"), 3) == 2
    assert workers_of(How(engine="ray", device="cuda"), None) == 2
    assert not ray.connected
    with pytest.raises(ValueError, match="a cluster without room for one, got 8 CPU, where each needs 9"):
        workers_of(How(engine="ray"), 9)
