"""The store when the disk, the folder or another process refuses: plain errors, and what was finished stays whole."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tracer.capture import Capture
from tracer.database import ROOM, TraceBusy
from tracer.pictures import digest
from tracer.recording import recording
from tracer.rows import RunRow
from tracer.store import Store
from tracer.writer import TraceNotWritten

STEPS, NOBODY = 2, 65534
FULL = r"^the trace could not be written: the file may not grow further \(File too large\); .*trace\.duckdb {}$"
KEEPS = FULL.format("keeps every image that was finished before")
KEEPS_ANEW = FULL.format("keeps every image that was finished before, and must be opened anew")
LARGE = Capture(tokens="all", precision="float32")  # four images are a transaction that goes straight into the file


def drawn(pipe, images=1, guidance=5.0):
    """Return the SHA-256 of some images."""
    generators = [torch.Generator().manual_seed(i) for i in range(images)]
    options = {"num_images_per_prompt": images, "guidance_scale": guidance, "generator": generators}
    output = pipe("a cat with a crown", num_inference_steps=STEPS, height=64, width=64, **options)
    return [digest(image) for image in output.images]


def done_images(store):
    """Return the SHA-256 of the images that are marked as done, after a look whether they are whole."""
    assert store.verify()["whole"].all()
    done = store.sql(
        "SELECT image_sha256, (SELECT count(*) FROM calls c WHERE (c.run_id, c.sample) = (i.run_id, i.sample)) calls "
        "FROM images i WHERE done ORDER BY image"
    )
    assert set(done["calls"]) <= {STEPS}
    return done["image_sha256"].tolist()


def log_of(path):
    """Return the path of DuckDB's log, where what is not in the file proper yet lies."""
    return path.with_name(f"{path.name}.wal")


def check_goes_on(pipe, path, finished):
    """Check that the file opens for reading and writing with just these images, and that one more can be recorded."""
    for opening in (Store.open, Store.create):
        with opening(path) as store:
            assert done_images(store) == finished
    with recording(pipe, path):
        more = drawn(pipe)
    with Store.open(path) as store:
        assert done_images(store) == finished + more


@contextmanager
def files_may_grow_to(size):
    """Let no file of this process grow further, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def nobody():
    """Be a user who may do only what everybody may: the tests may run as root, who may do all."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def folder():
    """Return a folder that everybody can reach."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o777)
    yield path
    path.chmod(0o777)
    shutil.rmtree(path)


@pytest.fixture
def hardly_any_room(monkeypatch):
    """Leave less on the disk than a run needs to begin."""
    monkeypatch.setattr("tracer.database.disk_usage", lambda path: SimpleNamespace(free=ROOM - 1))


# A full disk


@pytest.mark.parametrize(("capture", "images"), [(Capture(), 1), (LARGE, 4)], ids=["the log", "the file proper"])
def test_a_disk_that_fills_up_stops_the_recording_and_keeps_the_finished_images(tiny_pipe, tmp_path, capture, images):
    path, finished, own = tmp_path / "trace.duckdb", [], type(tiny_pipe)
    with pytest.raises(TraceNotWritten, match=KEEPS), recording(tiny_pipe, path, capture):
        finished += drawn(tiny_pipe, images)
        with files_may_grow_to(path.stat().st_size + 2**18):
            for _ in range(1000):
                finished += drawn(tiny_pipe, images)
    assert type(tiny_pipe) is own
    with Store.open(path) as store:
        assert store.sql("SELECT status FROM runs")["status"].tolist() == ["failed"]
    check_goes_on(tiny_pipe, path, finished)


def test_a_store_that_stays_open_is_read_and_written_again_once_there_is_room(tiny_pipe, store):
    finished = []
    with (
        pytest.raises(TraceNotWritten, match=KEEPS),
        recording(tiny_pipe, store),
        files_may_grow_to(store.path.stat().st_size),
    ):
        for _ in range(1000):
            finished += drawn(tiny_pipe)
    assert done_images(store) == finished
    with recording(tiny_pipe, store):
        finished += drawn(tiny_pipe)
    assert done_images(store) == finished


@pytest.mark.parametrize("ending", ["the block's end", "another run"])
def test_a_run_that_cannot_be_moved_into_the_file_proper_keeps_its_images_in_the_log(tiny_pipe, tmp_path, ending):
    path, finished = tmp_path / "trace.duckdb", []
    Store.create(path).close()
    with (
        pytest.raises(TraceNotWritten, match=KEEPS_ANEW),
        files_may_grow_to(path.stat().st_size),
        recording(tiny_pipe, path),
    ):
        finished += drawn(tiny_pipe)
        if ending == "another run":
            drawn(tiny_pipe, guidance=2.0)
    assert log_of(path).exists()
    check_goes_on(tiny_pipe, path, finished)


def test_the_error_that_ended_a_run_is_the_one_to_be_seen_on_a_full_disk_too(tiny_pipe, tmp_path):
    path = tmp_path / "trace.duckdb"
    with pytest.raises(KeyboardInterrupt), ExitStack() as full, recording(tiny_pipe, path):
        finished = drawn(tiny_pipe)
        full.enter_context(files_may_grow_to(0))
        raise KeyboardInterrupt
    check_goes_on(tiny_pipe, path, finished)


def test_after_a_checkpoint_that_failed_an_open_store_says_that_it_must_be_opened_anew(store):
    with files_may_grow_to(store.path.stat().st_size), pytest.raises(TraceNotWritten, match=KEEPS_ANEW):
        for _ in range(1000):
            store.end_run(store.add_run(RunRow("m" * 100_000), Capture()), "done")
    with pytest.raises(TraceNotWritten, match=KEEPS_ANEW):
        store.sql("FROM runs")


def test_where_there_is_hardly_any_room_a_run_that_ends_stays_in_the_log(store, monkeypatch):
    log_at_the_end = []
    for free in (ROOM, ROOM - 1):
        run_id = store.add_run(RunRow("m"), Capture())
        monkeypatch.setattr("tracer.database.disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        store.end_run(run_id, "done")
        log_at_the_end.append(log_of(store.path).exists() and log_of(store.path).stat().st_size > 0)
    assert log_at_the_end == [False, True]
    assert store.sql("SELECT status FROM runs")["status"].tolist() == ["done", "done"]


def test_a_run_does_not_begin_where_there_is_hardly_any_room(store, tiny_pipe, hardly_any_room):
    with pytest.raises(OSError, match=r"at least 64 MB to begin with; .* has 63 MB free"), recording(tiny_pipe, store):
        drawn(tiny_pipe)
    assert store.sql("FROM runs").empty


def test_a_file_is_not_made_where_there_is_hardly_any_room(tmp_path, hardly_any_room):
    with pytest.raises(OSError, match="at least 64 MB"):
        Store.create(tmp_path / "trace.duckdb")
    assert list(tmp_path.iterdir()) == []


# At 400 kB the log has room and the file proper has not: DuckDB would close it as if nothing had happened.
@pytest.mark.parametrize("size", [0, 20_000, 400_000])
def test_a_file_that_cannot_be_made_whole_is_not_made(tmp_path, size):
    path = tmp_path / "trace.duckdb"
    with files_may_grow_to(size), pytest.raises(TraceNotWritten, match=FULL.format("was not made")):
        Store.create(path)
    assert list(tmp_path.iterdir()) == []
    Store.create(path).close()


# What may not be written


def test_in_a_folder_that_is_read_only_no_file_is_made(folder, tiny_pipe):
    path, own = folder / "trace.duckdb", type(tiny_pipe)
    folder.chmod(0o555)
    with nobody(), pytest.raises(PermissionError, match=rf"{path} .*folder is read-only"):
        Store.create(path)
    with nobody(), pytest.raises(PermissionError, match=rf"{path} .*folder is read-only"), recording(tiny_pipe, path):
        drawn(tiny_pipe)
    assert list(folder.iterdir()) == []
    assert type(tiny_pipe) is own


def test_a_trace_in_a_folder_that_is_read_only_can_be_read_but_not_written(folder):
    path = folder / "trace.duckdb"
    Store.create(path).close()
    path.chmod(0o666)
    folder.chmod(0o555)
    with nobody():
        with pytest.raises(PermissionError, match=rf"{path} .*folder is read-only"):
            Store.create(path)
        with Store.open(path) as store:
            assert store.sql("FROM runs").empty


def test_a_trace_that_is_read_only_can_be_read_but_not_written(folder):
    path = folder / "trace.duckdb"
    Store.create(path).close()
    path.chmod(0o444)
    with nobody():
        with pytest.raises(PermissionError, match=rf"{path} may not be opened"):
            Store.create(path)
        with Store.open(path) as store:
            assert store.sql("FROM runs").empty
    assert [file.name for file in folder.iterdir()] == ["trace.duckdb"]


def test_a_trace_that_may_not_be_read_is_refused(folder):
    path = folder / "trace.duckdb"
    Store.create(path).close()
    path.chmod(0)
    for opening in (Store.open, Store.create):
        with nobody(), pytest.raises(PermissionError, match=rf"{path} may not be opened"):
            opening(path)


def test_what_still_lies_in_the_log_is_read_in_a_folder_that_is_read_only(tiny_pipe, store, folder):
    with recording(tiny_pipe, store):
        finished = drawn(tiny_pipe)
        for file in (store.path, log_of(store.path)):  # as a killed process would have left them
            shutil.copyfile(file, folder / file.name)
            (folder / file.name).chmod(0o444)
    folder.chmod(0o555)
    with nobody(), Store.open(folder / store.path.name) as read:
        assert done_images(read) == finished
    assert len(list(folder.iterdir())) == 2


def test_a_folder_is_no_trace(tmp_path):
    with pytest.raises(ValueError, match="must be an Attnreg trace"):
        Store.create(tmp_path)
    with pytest.raises(FileNotFoundError):
        Store.open(tmp_path)


# A second writer


@pytest.mark.parametrize("opening", [Store.create, Store.open])
def test_a_file_that_this_process_writes_is_opened_no_second_time(store, tiny_pipe, opening):
    with recording(tiny_pipe, store):
        finished = drawn(tiny_pipe)
        with pytest.raises(TraceBusy, match=rf"{store.path} is open already, in this process"):
            opening(store.path)
        finished += drawn(tiny_pipe)
    assert done_images(store) == finished


def test_a_file_that_this_process_reads_is_not_opened_for_writing(tmp_path, tiny_pipe):
    path, own = tmp_path / "trace.duckdb", type(tiny_pipe)
    Store.create(path).close()
    with Store.open(path) as store:
        with pytest.raises(TraceBusy, match="open already, in this process"), recording(tiny_pipe, path):
            drawn(tiny_pipe)
        assert store.sql("FROM runs").empty
    assert type(tiny_pipe) is own


HOLDER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "reads")
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(path, how):
    """Let another process read or write the file while the block runs; gives the process's number."""
    command = [sys.executable, "-c", HOLDER, str(path), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        yield process.pid
        process.stdin.close()
    assert process.returncode == 0


def test_a_file_that_another_process_writes_can_be_neither_written_nor_read(tmp_path, tiny_pipe):
    path, own = tmp_path / "trace.duckdb", type(tiny_pipe)
    Store.create(path).close()
    with held(path, "writes") as process:
        busy = rf"{path} is open already, by process {process};"
        for opening in (Store.create, Store.open):
            with pytest.raises(TraceBusy, match=busy):
                opening(path)
        with pytest.raises(TraceBusy, match=busy), recording(tiny_pipe, path):
            drawn(tiny_pipe)
    assert type(tiny_pipe) is own
    check_goes_on(tiny_pipe, path, [])


def test_a_file_that_another_process_reads_can_only_be_read(tmp_path):
    path = tmp_path / "trace.duckdb"
    Store.create(path).close()
    with held(path, "reads") as process:
        with pytest.raises(TraceBusy, match=rf"{path} is open already, by process {process};"):
            Store.create(path)
        with Store.open(path) as store:
            assert store.sql("FROM runs").empty


@pytest.mark.parametrize("how", ["writes", "reads"])
def test_another_process_does_not_disturb_the_one_that_writes(store, tiny_pipe, how):
    command = [sys.executable, "-c", HOLDER, str(store.path), how]
    with recording(tiny_pipe, store):
        finished = drawn(tiny_pipe)
        refused = subprocess.run(command, input="", capture_output=True, text=True)
        assert refused.stdout == ""
        assert "Conflicting lock" in refused.stderr
        finished += drawn(tiny_pipe)
    assert done_images(store) == finished


# A process that dies


KILLED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
sys.path[:0] = sys.argv[2:]
import conftest
import tracer.database
import tracer.store
from tracer.record import Recorder
from tracer.rows import RunRow
from tracer.store import Store

SETTING = conftest.Setting(guided=False, prompts=("a cat",), sizes=((2, 2, 1), (1, 2, 1)))

def record(store, name):
    recorder = Recorder(store, conftest.EXACT)
    samples = [conftest.sample_of(0, "a cat")]
    recorder.begin(RunRow("random"), samples, conftest.texts_of("a cat"), conftest.LAYERS[:2])
    for call in range(2):
        recorder.call(call, halves=("cond",))
        for layer in range(2):
            recorder(conftest.tap_of(SETTING, call, layer))
    recorder.images([(name, "")])
    recorder.wait()
    recorder.end()

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def in_a_transaction():
    insert = tracer.store._insert
    def half(cursor, table, rows, run_id):
        insert(cursor, table, rows, run_id)
        if table == "head_stats":
            die()
    tracer.store._insert = half

def before_the_image_is_noted():
    Store.add_images = die

def after_the_image_is_noted():
    add_images = Store.add_images
    Store.add_images = lambda *args: (add_images(*args), die())

def before_the_checkpoint():
    tracer.store.database = SimpleNamespace(**vars(tracer.database) | {"has_room": die})  # as the store asks it

for place in (in_a_transaction, before_the_image_is_noted, after_the_image_is_noted, before_the_checkpoint):
    path = Path(sys.argv[1], place.__name__ + ".duckdb")
    if not (child := os.fork()):
        with Store.create(path) as store:
            record(store, "first")
            place()
            record(store, "second")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, place
if not (child := os.fork()):
    os.link = die
    Store.create(Path(sys.argv[1], "while_it_is_made.duckdb"))
assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory, request):
    """Return a folder of traces whose writers died at the place that each is named after, while on a second image."""
    path = tmp_path_factory.mktemp("killed")
    places = [str(request.path.parent), str(request.config.rootpath)]
    subprocess.run([sys.executable, "-c", KILLED, str(path), *places], check=True)
    return path


@pytest.mark.parametrize(
    ("place", "images"),
    [
        ("in_a_transaction", ["first"]),
        ("before_the_image_is_noted", ["first"]),
        ("after_the_image_is_noted", ["first", "second"]),
        ("before_the_checkpoint", ["first", "second"]),
    ],
)
def test_a_killed_writer_leaves_each_image_that_was_noted_whole_and_once(killed, place, images, tiny_pipe):
    check_goes_on(tiny_pipe, killed / f"{place}.duckdb", images)


def test_a_process_that_dies_while_it_makes_a_file_leaves_none(killed):
    path = killed / "while_it_is_made.duckdb"
    with pytest.raises(FileNotFoundError):
        Store.open(path)
    with Store.create(path) as store:
        assert store.sql("FROM runs").empty
