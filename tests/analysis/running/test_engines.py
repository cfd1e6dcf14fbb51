"""Workers that die: what they were at is made again, and the tables are those of one process."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import pytest
import small_runs
import torch

from analysis.running import worker
from analysis.running.engines import WorkersDied, deal, here, local, on_card
from analysis.running.ledger import done, failures, left_of, rows_of, write_failure, write_unit
from analysis.running.ray_engine import PATIENCE, on_ray, telling
from analysis.running.run import How
from analysis.running.worker import Setup, Unfit
from tracer.capture import Capture
from tracer.store import Store


class Dead(Exception):
    """A worker died."""


class Seat:
    """Its worker dies at the batches that it is told to, once for each time; what comes before them is done."""

    def __init__(self, run, deaths=()):
        self.run, self.deaths, self.did = run, list(deaths), []

    def begun(self):
        future = Future()
        future.set_result(None)
        return future

    def submit(self, job):
        future = Future()
        for unit in left_of(self.run, job):
            if unit.key in self.deaths:
                self.deaths.remove(unit.key)
                future.set_exception(Dead())
                return future
            self.did.append(unit.key)
            write_unit(self.run, unit.key, [])
        future.set_result(1)
        return future

    def died(self, error):
        return isinstance(error, Dead)


def jobs(unit, count):
    return [(replace(unit, key=str(number)),) for number in range(count)]


@pytest.fixture
def unit(small, tiny_pipe):
    from analysis.prompts.files import PromptSet
    from analysis.running.units import planned

    return planned(small.parts[0], PromptSet("p", "P", small.parts[0].prompts), tiny_pipe, ("", "")).jobs[0][0]


def deal_all(seats, jobs):
    deal(seats, jobs, seats[0].run, lambda: None)


def test_every_job_is_done_once_by_some_worker(unit, tmp_path):
    seats = [Seat(tmp_path), Seat(tmp_path)]
    deal_all(seats, jobs(unit, 7))
    assert sorted(int(key) for seat in seats for key in seat.did) == list(range(7))
    assert all(seat.did for seat in seats)


def test_a_job_whose_worker_died_is_done_again_and_first(unit, tmp_path):
    seat = Seat(tmp_path, deaths=["1", "1"])
    deal_all([seat], jobs(unit, 3))
    assert seat.did == ["0", "1", "2"]
    assert not failures(tmp_path)


def job_of(unit, *keys):
    return tuple(replace(unit, key=key) for key in keys)


def test_the_batch_that_kills_three_workers_is_noted_as_failed_and_the_rest_goes_on(unit, tmp_path):
    seat = Seat(tmp_path, deaths=["deadly"] * 3)
    deal_all([seat], [job_of(unit, "before", "deadly", "after"), *jobs(unit, 2)])
    ((key, facts),) = failures(tmp_path).items()
    assert (key, facts["method"], facts["prompt"]) == ("deadly", unit.name, unit.prompt.text)
    assert facts["error"] == "Dead: 3 workers died at it, one after the other; is there enough memory?"
    assert seat.did == ["before", "after", "0", "1"]


def test_deaths_are_counted_for_each_batch_and_not_for_its_job(unit, tmp_path):
    seat = Seat(tmp_path, deaths=["a", "b", "b", "c", "d", "d"])
    deal_all([seat], [job_of(unit, *"abcd")])
    assert seat.did == list("abcd")
    assert not failures(tmp_path)


def test_what_failed_is_not_tried_again_along_with_the_rest_of_its_job(unit, made, tmp_path):
    write_failure(tmp_path, "a", {"error": "not today"})
    here([job_of(unit, "a", "b")], Setup(tmp_path), lambda: None)
    assert len(made) == 1
    assert (done(tmp_path), set(failures(tmp_path))) == ({"b"}, {"a"})


def test_three_such_batches_in_a_row_end_the_run(unit, tmp_path):
    with pytest.raises(WorkersDied, match=r"3 workers died at the same batch, 3 times, .* of 'a cat and a dog'; is"):
        deal_all([Seat(tmp_path, deaths=[*"012"] * 3)], jobs(unit, 5))
    assert set(failures(tmp_path)) == {"0", "1", "2"}


def test_a_batch_that_is_done_between_them_lets_it_go_on(unit, tmp_path):
    seat = Seat(tmp_path, deaths=[*"013"] * 3)
    deal_all([seat], [*jobs(unit, 2), job_of(unit, "2", "3"), job_of(unit, "4")])
    assert set(failures(tmp_path)) == {"0", "1", "3"}
    assert seat.did == ["2", "4"]


def test_a_seat_that_nobody_takes_holds_up_no_job(unit, tmp_path):
    class Empty(Seat):
        def begun(self):
            return Future()

    seats = [Empty(tmp_path), Seat(tmp_path, deaths=["0"])]
    deal_all(seats, jobs(unit, 4))
    assert seats[1].did == ["0", "1", "2", "3"]


def test_workers_that_all_die_before_they_begin_end_the_run(unit, tmp_path):
    class Stillborn(Seat):
        def begun(self):
            future = Future()
            future.set_exception(Dead("no torch here"))
            return future

    with pytest.raises(WorkersDied, match="no worker lives long enough to begin: no torch here"):
        deal_all([Stillborn(tmp_path), Stillborn(tmp_path)], jobs(unit, 1))
    seats = [Stillborn(tmp_path), Seat(tmp_path)]
    deal_all(seats, jobs(unit, 2))
    assert len(seats[1].did) == 2


class Unable(Seat):
    """Its worker gives up at once."""

    def submit(self, job):
        future = Future()
        future.set_exception(Unfit("model 'm' cannot be loaded on cuda of node-7: no driver"))
        return future


def test_a_worker_that_gives_up_takes_no_batch_with_it_and_the_others_go_on(unit, tmp_path, caplog):
    seats = [Unable(tmp_path), Seat(tmp_path)]
    deal_all(seats, jobs(unit, 5))
    assert sorted(seats[1].did) == [*"01234"]
    assert caplog.messages == ["one worker fewer: model 'm' cannot be loaded on cuda of node-7: no driver"]
    with pytest.raises(WorkersDied, match="no worker can work: model 'm' cannot be loaded on cuda of node-7"):
        deal_all([Unable(tmp_path), Unable(tmp_path)], [job_of(unit, "5")])
    assert not failures(tmp_path)


def test_any_other_error_is_the_callers(unit, tmp_path):
    class Broken(Seat):
        def died(self, error):
            return False

    with pytest.raises(Dead):
        deal_all([Broken(tmp_path, deaths=["0"])], jobs(unit, 2))


@pytest.fixture
def two_threads():
    """What this process computes with; workers are not to."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_run_goes_on_when_one_of_its_two_processes_is_killed(small, quiet, two_threads, tmp_path, capfd):
    eight = small_runs.eight(small.parts[0].model)
    for out in ("alone", "both"):
        quiet(eight, tmp_path / out, small_runs.BEGUN)
    alone = quiet(eight, tmp_path / "alone")
    assert "threads of a worker: 1, as in this run's first call; this one would have taken 2" in quiet.said
    killed = []

    def kill() -> None:
        end = time.monotonic() + 300
        while time.monotonic() < end and not killed:
            runs = list((tmp_path / "both").glob("small-*"))
            workers = multiprocessing.active_children()
            if runs and 4 <= len(done(runs[0])) < 20 and len(workers) == 2:
                os.kill(workers[0].pid, signal.SIGKILL)
                killed.append(workers[0].pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    capfd.readouterr()
    both = quiet(eight, tmp_path / "both", How(workers=2))
    killer.join()
    said = capfd.readouterr().err
    assert said.count("pipeline components...:   0%") <= 1  # the plan's, and no bars of workers
    assert not [line for line in said.splitlines() if line and "Loading" not in line]  # nor complaints as they end
    assert len(killed) == 1
    assert both.parts[0].board.equals(alone.parts[0].board)
    assert set(rows_of(both.run)["unit"]) == set(rows_of(alone.run)["unit"])
    assert {*rows_of(both.run)["threads"], *rows_of(alone.run)["threads"]} == {1}
    assert not both.failed


def test_workers_take_the_cards_in_turn(monkeypatch, tmp_path):
    setup = Setup(tmp_path, "cuda")
    assert on_card(setup, 3).device == "cuda"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [on_card(setup, place).device for place in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert on_card(Setup(tmp_path, "cuda:1"), 0).device == "cuda:1"
    assert on_card(Setup(tmp_path, "cpu"), 1).device == "cpu"


def test_engines_of_no_worker_are_refused():
    for engine in (local, on_ray):
        with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
            engine(0)


def test_a_cluster_without_room_is_told_of_once_and_one_whose_worker_began_is_not(caplog):
    ray, ticks = SimpleNamespace(available_resources=lambda: {"CPU": 0.5, "memory": 1e9}), []

    def watched(seat, *seconds):
        return telling(ray, [seat], {"num_cpus": 1}, lambda: ticks.append(1), iter(seconds).__next__)

    empty = watched(SimpleNamespace(ready=Future()), 0.0, PATIENCE - 1, PATIENCE + 1)  # a third tick asks no clock
    for said in (0, 1, 1):
        empty()
        assert len(caplog.messages) == said
    assert "each needs {'num_cpus': 1}, the cluster has {'CPU': 0.5, 'GPU': 0} free" in caplog.text
    assert len(ticks) == 3
    seat = SimpleNamespace(ready=Future())
    begun = watched(seat, 0.0)
    seat.ready.set_result(None)
    begun()
    seat.ready = Future()  # it died, and another one is waited for
    begun()
    assert len(caplog.messages) == 1


def traced(unit):
    return (replace(unit, key="k", capture=Capture(precision="none", tokens="targets")),)


def test_of_unfinished_traces_those_go_that_nobody_writes(unit, tmp_path):
    traces = tmp_path / "traces"
    traces.mkdir()
    (traces / ".k.dead.duckdb").write_bytes(b"half a trace")
    (traces / ".k.dead.duckdb.tmp").mkdir()
    with Store.create(traces / ".k.live.duckdb"):
        here([traced(unit)], Setup(tmp_path), lambda: None)
        assert {path.name.split(".duckdb")[0] for path in traces.iterdir()} == {".k.live", "k"}
    assert not failures(tmp_path)


def test_a_trace_that_was_taken_away_meanwhile_is_no_empty_one(unit, monkeypatch, tmp_path):
    original = worker.generate

    def robbed(*given):
        made = original(*given)
        for draft in (tmp_path / "traces").iterdir():
            draft.unlink()
        return made

    monkeypatch.setattr(worker, "generate", robbed)
    here([traced(unit)], Setup(tmp_path), lambda: None)
    assert "was taken away while the images were made" in failures(tmp_path)["k"]["error"]
    assert not list((tmp_path / "traces").glob("k.duckdb"))
