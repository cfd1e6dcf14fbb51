"""`attnreg run` and `attnreg experiments`: thin, documented, and brief about what went wrong."""

import re
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from analysis import cli, cli_runs
from analysis.experiments.catalogue import EXPERIMENTS
from analysis.running.engines import WorkersDied
from analysis.running.missing import BatchesFailed
from analysis.running.worker import Unfit


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"})


def test_every_experiment_is_listed_with_its_question():
    answer = invoke("experiments")
    assert answer.exit_code == 0
    for name, one in EXPERIMENTS.items():
        assert f"{name}: {one.question}\n" in answer.output


def test_every_option_of_run_says_what_it_is_for():
    options = re.findall(r"^\W*(--[a-z-]+)(.*)$", invoke("run", "--help").output, re.MULTILINE)
    assert len(options) >= 11
    assert all(len(re.sub(r"\W|[A-Z]", "", text)) > 8 for _, text in options)


def test_options_reach_the_runner(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(cli_runs, "run_experiment", lambda *given: calls.append(given))
    flags = ["--shard", "2/8", "--retry", "--dry-run", "--workers", "3", "--engine", "ray", "--disk", "1.5"]
    answer = invoke("run", "emoji-dose", "--out", str(tmp_path), *flags)
    assert answer.exit_code == 0, answer.output
    experiment, out, how, _ = calls[0]
    assert (experiment, out) == (EXPERIMENTS["emoji-dose"], tmp_path)
    assert (how.shard, how.retry, how.dry, how.workers, how.engine) == ((2, 8), True, True, 3, "ray")
    assert how.disk == 1_500_000_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["emoji-tabel1"], "an experiment must be one of emoji-table1, "),
        (["emoji-dose", "--shard", "two"], "--shard must be i/n, such as 2/8, got 'two'"),
        (["emoji-dose", "--shard", "9/8"], "a shard must be i/n with i from 1 to n, got 9/8"),
        (["emoji-dose", "--device", "cdua"], "device must be one of torch's"),
        (["table2", "--data", "/nowhere"], "--data says in which folder they are"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "analysis.running.run.load_pipeline", lambda name: pytest.fail("no model is needed to see this")
    )
    answer = invoke("run", *arguments, "--out", str(tmp_path))
    assert answer.exit_code == 2
    assert said in " ".join(answer.output.split())
    assert not list(tmp_path.iterdir())


def test_batches_that_failed_make_exit_status_1(monkeypatch, tmp_path):
    def broken(*_):
        raise BatchesFailed("2 batches failed")

    monkeypatch.setattr(cli_runs, "run_experiment", broken)
    answer = invoke("run", "emoji-dose", "--out", str(tmp_path))
    assert (answer.exit_code, answer.output) == (1, "attnreg: 2 batches failed\n")
    found = SimpleNamespace(failed={"key": {}})
    monkeypatch.setattr(cli_runs, "run_experiment", lambda *_: found)
    monkeypatch.setattr(cli_runs, "publish", lambda *_: tmp_path)
    assert invoke("run", "emoji-dose", "--allow-missing").exit_code == 1
    found.failed.clear()
    assert invoke("run", "emoji-dose", "--allow-missing").exit_code == 0


@pytest.mark.parametrize("error", [ImportError("Ray is no part"), WorkersDied("no room"), Unfit("no driver")])
def test_who_cannot_work_is_said_in_a_line(error, monkeypatch, tmp_path):
    def broken(*_):
        raise error

    monkeypatch.setattr(cli_runs, "run_experiment", broken)
    answer = invoke("run", "emoji-dose", "--out", str(tmp_path))
    assert (answer.exit_code, answer.output) == (2, f"attnreg: {error}\n")
