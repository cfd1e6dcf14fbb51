"""The command line: thin, documented, and brief about what went wrong."""

import re

import pytest
from typer.testing import CliRunner

from analysis import cli
from analysis.plan import animal_pairs, halves
from regulate import METHODS, AttentionRegulation

COMMANDS = ("compare", "demo")


def run(*arguments: str):
    return CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"})


def test_every_command_and_option_says_what_it_is_for():
    assert sorted(command.name or command.callback.__name__ for command in cli.app.registered_commands) == list(
        COMMANDS
    )
    for command in COMMANDS:
        help_text = run(command, "--help")
        assert help_text.exit_code == 0
        options = re.findall(r"^\W*(--[a-z]+)(.*)$", help_text.output, re.MULTILINE)
        assert len(options) >= 5
        assert all(len(re.sub(r"\W|[A-Z]", "", text)) > 8 for _, text in options)
    assert all(command in run("--help").output for command in COMMANDS)


def test_the_version_is_printed():
    answer = run("--version")
    assert answer.exit_code == 0
    assert re.fullmatch(r"attnreg (\d+\.\d+\S*|\(not installed, run from a checkout\))\n", answer.output)


@pytest.fixture
def called(monkeypatch):
    """The public functions, replaced by a list of what they were called with."""
    calls = []
    for name in ("make_demo", "compare_methods", "search_variants"):
        monkeypatch.setattr(cli, name, lambda *given, name=name, **named: calls.append((name, *given, *named.items())))
    return calls


def test_demo_passes_its_options_on(called, tmp_path):
    assert run("demo", "--out", str(tmp_path / "out")).exit_code == 0
    options = ["--prompt", "a cat and a dog", "--target", "cat", "--target", "dog", "--seeds", "3", "--model", "there"]
    assert run("demo", "--out", str(tmp_path / "out"), *options).exit_code == 0
    assert called == [
        ("make_demo", tmp_path / "out", None, (), range(16), ("model", "emoji")),
        ("make_demo", tmp_path / "out", "a cat and a dog", ["cat", "dog"], range(3), ("model", "there")),
    ]


def test_compare_runs_on_all_pairs_one_half_or_searches(called, tmp_path):
    tune, test = halves(animal_pairs())
    for options in ([], ["--pairs", "tune"], ["--pairs", "test"], ["--search", "--seeds", "4", "--method", "boost"]):
        assert run("compare", "--out", str(tmp_path), *options).exit_code == 0
    published = {"regulation": AttentionRegulation()}
    assert called == [
        *(
            ("compare_methods", pairs, range(16), published, tmp_path, ("model", "emoji"))
            for pairs in (animal_pairs(), tune, test)
        ),
        ("search_variants", animal_pairs(), range(4), tmp_path, ("base", METHODS["boost"]), ("model", "emoji")),
    ]


def test_several_methods_are_compared_at_once_and_searched_one_by_one(called, tmp_path):
    names = ("--method", "boost", "--method", "syngen")
    assert run("compare", "--out", str(tmp_path), *names).exit_code == 0
    assert called[0][3] == {"boost": METHODS["boost"], "syngen": METHODS["syngen"]}
    answer = run("compare", "--search", *names)
    assert answer.exit_code == 2
    assert "--search is of one --method, got boost, syngen" in " ".join(answer.output.split())
    assert run("compare", "--method", "none").exit_code == 2


def test_a_search_chooses_its_halves_itself(called):
    answer = run("compare", "--search", "--pairs", "tune")
    assert answer.exit_code == 2
    assert called == []


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError])
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(error, monkeypatch):
    def fail(*given: object, **named: object) -> None:
        raise error("targets must be\n  words of the prompt")

    monkeypatch.setattr(cli, "make_demo", fail)
    answer = run("demo")
    assert answer.exit_code == 2
    assert answer.stderr == "attnreg: targets must be words of the prompt\n"
    assert answer.stdout == ""


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(*given: object, **named: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(cli, "make_demo", fail)
    assert isinstance(run("demo").exception, KeyError)


def test_a_wrong_target_says_so_and_writes_nothing(tmp_path, tiny_model):
    out = tmp_path / "out"
    answer = run("demo", "--out", str(out), "--prompt", "a cat", "--target", "spoon", "--model", tiny_model)
    assert answer.exit_code == 2
    assert answer.stderr.startswith("attnreg: ")
    assert answer.stderr.count("\n") == 1
    assert not out.exists()
