"""The recorder when something goes wrong: errors are loud, and what was whole before them stays."""

import threading

import duckdb
import pytest

from tracer.capture import Capture
from tracer.record import Recorder
from tracer.rows import RunRow, SampleRow
from tracer.store import Store
from tracer.writer import TraceNotWritten, Writer


@pytest.fixture
def setting(bench):
    return bench.Setting(guided=False, sizes=((2, 2, 1), (1, 2, 1)), prompts=("a cat",))


@pytest.fixture
def recorder(store, bench):
    recorder = Recorder(store, bench.EXACT)
    recorder.begin(RunRow("m"), [SampleRow(0, "a cat")], bench.texts_of("a cat"), bench.LAYERS[:2])
    yield recorder
    if recorder.running:
        recorder.end("failed")


def whole_pass(recorder, bench, setting, call):
    recorder.call(call, halves=("cond",))
    for layer in range(2):
        recorder(bench.tap_of(setting, call, layer))


def test_a_run_that_raises_is_marked_failed_and_keeps_its_whole_passes(tmp_path, bench, setting):
    path = tmp_path / "trace.duckdb"
    with pytest.raises(KeyboardInterrupt), Store.create(path) as store, Recorder(store, bench.EXACT) as recorder:
        recorder.begin(RunRow("m"), [SampleRow(0, "a cat")], bench.texts_of("a cat"), bench.LAYERS[:2])
        whole_pass(recorder, bench, setting, 0)
        recorder.call(1, halves=("cond",))
        recorder(bench.tap_of(setting, 1, 0))  # half a pass
        raise KeyboardInterrupt
    with Store.open(path) as store:
        assert store.sql("SELECT status FROM runs")["status"].tolist() == ["failed"]
        assert store.sql("SELECT DISTINCT call FROM head_stats")["call"].tolist() == [0]
        assert store.verify()["whole"].all()


def test_a_pass_that_nobody_announced_is_refused(recorder, bench, setting):
    with pytest.raises(ValueError, match="be announced"):
        recorder(bench.tap_of(setting, 0, 0))
    recorder.call(0, halves=("cond",))
    recorder(bench.tap_of(setting, 0, 0))
    with pytest.raises(ValueError, match="be announced"):
        recorder(bench.tap_of(setting, 1, 0))


def test_a_pass_without_one_of_the_layers_is_refused(recorder, store, bench, setting):
    recorder.call(0, halves=("cond",))
    recorder(bench.tap_of(setting, 0, 0))
    with pytest.raises(ValueError, match=r"got nothing of .*mid_block"):
        recorder.call(1, halves=("cond",))
    with pytest.raises(ValueError, match=r"got nothing of .*mid_block"):
        recorder.end()
    assert store.sql("SELECT status FROM runs")["status"].tolist() == ["failed"]


def test_sites_that_are_not_to_be_recorded_are_passed_over(recorder, store, bench, setting):
    whole_pass(recorder, bench, setting, 0)
    other = bench.Setting(guided=False, sizes=((2, 2, 1),) * 3, prompts=("a cat",))
    recorder(bench.tap_of(other, 0, 2))
    recorder.end()
    assert store.sql("SELECT path FROM layers ORDER BY layer")["path"].tolist() == list(bench.LAYERS[:2])


def test_a_batch_of_another_size_than_announced_is_refused(recorder, bench, setting):
    recorder.call(0, halves=("uncond", "cond"))
    with pytest.raises(ValueError, match=r"of 2 rows .*got 1"):
        recorder(bench.tap_of(setting, 0, 0))


def test_token_sequences_of_another_length_are_refused(recorder, bench):
    recorder.call(0, halves=("cond",))
    longer = bench.Setting(guided=False, length=9, prompts=("a cat",))
    with pytest.raises(ValueError, match="9 long, got 8"):
        recorder(bench.tap_of(longer, 0, 0))


def test_maps_that_change_their_size_are_refused(recorder, bench, setting):
    whole_pass(recorder, bench, setting, 0)
    recorder.call(1, halves=("cond",))
    larger = bench.Setting(guided=False, sizes=((4, 4, 1),), prompts=("a cat",))
    with pytest.raises(ValueError, match="keep their size"):
        recorder(bench.tap_of(larger, 1, 0))


def test_an_edit_of_the_unconditional_half_is_refused(store, bench):
    setting = bench.Setting(prompts=("a cat",), edit=slice(0, 1))
    with pytest.raises(ValueError, match="rows 1 to 2, got 0 to 1"):
        bench.record(store, setting)


@pytest.mark.parametrize(
    ("samples", "tokens", "message"), [(0, 0, "at least 1"), (2, 1, "per sample, 2"), (1, 2, "got 2")]
)
def test_a_batch_that_is_not_whole_writes_nothing(store, bench, samples, tokens, message):
    rows = [SampleRow(i, "a cat") for i in range(samples)]
    with pytest.raises(ValueError, match=message):
        Recorder(store).begin(RunRow("m"), rows, bench.texts_of(*["a cat"] * tokens), bench.LAYERS[:1])
    assert store.sql("FROM runs").empty


def test_the_unconditional_half_needs_its_tokens(store, bench):
    recorder = Recorder(store, bench.BOTH)
    with pytest.raises(ValueError, match="1, for uncond, got 0"):
        recorder.begin(RunRow("m"), [SampleRow(0, "a")], bench.texts_of("a"), bench.LAYERS[:1])


def test_a_sample_number_that_is_taken_fails_the_run(store, bench):
    twice = [SampleRow(0, "a"), SampleRow(0, "a")]
    with pytest.raises(duckdb.ConstraintException):
        Recorder(store).begin(RunRow("m"), twice, bench.texts_of("a", "a"), bench.LAYERS[:1])
    assert store.sql("SELECT status FROM runs")["status"].tolist() == ["failed"]


def test_a_second_run_must_wait_for_the_end_of_the_first(recorder, bench):
    with pytest.raises(ValueError, match="while run 1 is open"):
        recorder.begin(RunRow("m"), [SampleRow(0, "a")], bench.texts_of("a"), bench.LAYERS[:1])


@pytest.mark.parametrize("name", ["call", "end", "images"])
def test_without_a_run_nothing_can_be_recorded(store, name):
    arguments = {"call": (0,), "end": (), "images": ([],)}[name]
    with pytest.raises(ValueError, match="begin"):
        getattr(Recorder(store), name)(*arguments)


def test_images_must_be_as_many_as_samples(recorder):
    with pytest.raises(ValueError, match="per sample, 1, got 2"):
        recorder.images([("a", "b"), ("c", "d")])


def test_an_error_of_the_writer_surfaces_in_the_generating_thread(recorder, store, bench, setting, monkeypatch):
    add_passes = store.add_passes

    def refuse(run_id, passes):
        if passes[0].calls[0].call:
            raise OSError("the disk is full")
        add_passes(run_id, passes)

    monkeypatch.setattr("tracer.store.ENOUGH_ROWS", 1)  # each pass a transaction
    monkeypatch.setattr(store, "add_passes", refuse)
    with pytest.raises(TraceNotWritten, match="disk is full") as caught:
        for call in range(50):
            whole_pass(recorder, bench, setting, call)
    assert isinstance(caught.value.__cause__, OSError)
    recorder.end("failed")
    assert store.sql("SELECT status FROM runs")["status"].tolist() == ["failed"]
    assert store.sql("SELECT DISTINCT call FROM calls")["call"].tolist() == [0]


def test_an_error_in_the_last_pass_surfaces_at_the_end(recorder, store, bench, setting, monkeypatch):
    def refuse(run_id, passes):
        raise OSError("the disk is full")

    monkeypatch.setattr(store, "add_passes", refuse)
    whole_pass(recorder, bench, setting, 0)
    with pytest.raises(TraceNotWritten, match="disk is full"):
        recorder.end()
    assert store.sql("SELECT status FROM runs")["status"].tolist() == ["failed"]


def test_the_queue_makes_the_generation_wait_when_it_is_full():
    gate, done, handed = threading.Event(), [], []
    writer = Writer(depth=4)

    def generate():
        for number in range(8):
            writer.submit(lambda number=number: (gate.wait(), done.append(number)))
            handed.append(number)

    thread = threading.Thread(target=generate)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    assert len(handed) == 5  # one under way, four waiting
    gate.set()
    thread.join()
    writer.close()
    assert done == list(range(8))


def test_a_capture_of_no_branch_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Capture(branches=())
