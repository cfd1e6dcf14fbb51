"""What ends a run before its end, and what is noted then."""

from dataclasses import replace

import pytest
from small_runs import HERE, changed, folder

from analysis.plan import animal_pairs
from analysis.running import missing, planning, worker
from analysis.running.ledger import failures
from analysis.running.missing import BatchesFailed
from analysis.running.run import How
from analysis.running.worker import Unfit
from tracer.capture import Capture


def test_a_model_that_no_worker_can_load_is_no_batchs_failure(small, quiet, made, monkeypatch, tmp_path):
    def absent(*_):
        raise OSError("no such weights")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "load_pipeline", absent)
        with pytest.raises(Unfit, match=r"model .* cannot be loaded on cpu of .*: OSError: no such weights"):
            quiet(small, tmp_path)
    assert not failures(folder(tmp_path))
    quiet(small, tmp_path)
    assert len(made) == 6


def test_batches_that_all_fail_end_the_run(small, quiet, monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("the card is lost")

    monkeypatch.setattr(worker, "generate", broken)
    monkeypatch.setattr(worker, "IN_A_ROW", 3)
    with pytest.raises(Unfit, match=r"3 batches failed in a row on cpu of .*, the last with RuntimeError: the card is"):
        quiet(small, tmp_path)
    assert len(failures(folder(tmp_path))) == 3


def test_a_device_that_is_none_is_refused_before_anything_is_made(small, quiet, tmp_path):
    with pytest.raises(ValueError, match=r"device must be one of torch's, such as 'cpu' or 'cuda', got 'cdua'"):
        How(device="cdua")
    with pytest.raises(ValueError, match=r"device must be one that torch can compute on here, got 'meta': "):
        quiet(small, tmp_path, replace(HERE, device="meta"))
    assert not list(tmp_path.iterdir())


def test_a_shard_says_which_of_its_batches_failed_and_tries_no_others_again(small, quiet, made, monkeypatch, tmp_path):
    small = changed(small, prompts=animal_pairs()[:8], seeds=(0,))
    shards = [replace(HERE, shard=(number, 2)) for number in (1, 2)]
    with monkeypatch.context() as patch:
        patch.setattr(worker, "IN_A_ROW", 99)
        patch.setattr(worker, "generate", lambda *_: 1 / 0)
        for how in shards:
            with pytest.raises(BatchesFailed, match=r"^\d batches failed; .*failures says why, --retry tries again"):
                quiet(small, tmp_path, how)
            assert quiet.said.count("failed:") < 16  # not the other's
    assert len(failures(folder(tmp_path))) == 16
    assert quiet(small, tmp_path, replace(shards[0], retry=True)) is None
    assert 0 < len(failures(folder(tmp_path))) == 16 - len(made) < 16


@pytest.mark.parametrize("facts", [{}, {"dry": True}, {"shard": (1, 2)}])
def test_an_evaluator_that_is_not_here_is_said_before_anything_is_made(facts, small, quiet, monkeypatch, tmp_path):
    def absent(protocol):
        raise FileNotFoundError(f"no {protocol.key}")

    monkeypatch.setattr(planning, "evaluator", absent)
    with pytest.raises(FileNotFoundError, match="no emoji-owlv2"):
        quiet(small, tmp_path, replace(HERE, **facts))
    assert not list(tmp_path.iterdir())


def test_a_long_list_of_missing_cells_is_whole_in_a_file(small, quiet, monkeypatch, tmp_path):
    monkeypatch.setattr(worker, "IN_A_ROW", 99)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "generate", lambda *_: 1 / 0)
        patch.setattr(missing, "SHOWN", 2)
        with pytest.raises(BatchesFailed, match=r"missing: pairs: plain on .* and 7 more, all in .*missing\.txt; "):
            quiet(small, tmp_path)
    file = folder(tmp_path) / "missing.txt"
    lines = file.read_text().splitlines()
    assert len(lines) == 9
    assert lines[-1] == "pairs: syngen on 'a frog and a chair'"
    quiet(small, tmp_path, replace(HERE, retry=True))
    assert not file.exists()


def test_the_copies_of_traces_count_before_they_are_made(small, quiet, tmp_path):
    kept = Capture(precision="none", tokens="targets")
    traced = changed(small, traced={"plain": kept})
    assert quiet(traced, tmp_path, replace(HERE, shard=(1, 1))) is None
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(OSError, match=r"the run has .* GB and needs about .* more; --disk allows"):
        quiet(traced, tmp_path, replace(HERE, disk=size + 1000))
    assert not list(folder(tmp_path).glob("*.duckdb"))
