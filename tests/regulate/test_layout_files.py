import io
import json
import os
import pickle
import tarfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regulate import layout_files
from regulate.layout import Layout, Segment, placed
from regulate.layout_files import Laid, convert, load_layouts, read_coco250, save_layouts
from regulate.plain_pickles import read_pickle

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
RED, GREEN, BLUE, WHITE = (200, 0, 0), (0, 200, 0), (0, 0, 200), (255, 255, 255)
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="DenseDiffusion's set is not on this machine")


def flat(*rows: list[tuple[int, int, int]]) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    kept = io.BytesIO()
    image.save(kept, "PNG")
    return kept.getvalue()


TWO = flat([RED, RED, GREEN], [WHITE, RED, WHITE])  # by area: red, then green


def items(*phrases: list[str]) -> list[dict]:
    return [{"id": n, "caption": "a dog and a cat", "segments": own} for n, own in enumerate(phrases)]


@pytest.fixture
def described(tmp_path):
    """A set as DenseDiffusion has it: descriptions, and a folder of pictures."""

    def write(entries, *pictures: Image.Image):
        (tmp_path / "images").mkdir(exist_ok=True)
        for number, picture in enumerate(pictures):
            picture.save(tmp_path / "images" / f"{number}.png")
        (tmp_path / "set.json").write_text(json.dumps(entries))
        return tmp_path / "set.json", tmp_path / "images"

    return write


@pytest.fixture
def packed(tmp_path):
    """An archive with the given members."""

    def write(*members: tuple[tarfile.TarInfo, bytes]):
        with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as archive:
            for info, content in members:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return tmp_path / "images.tar.gz"

    return write


def laid(own: str = "0", *phrases: str) -> Laid:
    """Stripes from left to right, and a last column of no segment."""
    phrases = phrases or ("", "a dog")
    columns = torch.eye(len(phrases) + 1).bool()[:-1]
    return Laid(own, "a dog ä", Layout(tuple(Segment(p, c[None]) for p, c in zip(phrases, columns, strict=True))))


def test_white_is_the_background_and_colours_are_matched_by_descending_area(described):
    [found] = read_coco250(*described(items(["", "a dog", "a cat"]), TWO))
    assert (found.id, found.caption) == ("0", "a dog and a cat")
    assert found.layout.phrases == ("", "a dog", "a cat")
    assert found.layout.masks.int().tolist() == [
        [[0, 0, 0], [1, 0, 1]],
        [[1, 1, 0], [0, 1, 0]],
        [[0, 0, 1], [0, 0, 0]],
    ]


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (flat([RED, RED, GREEN]), "a colour for each of 3 segments, got 2"),
        (flat([RED, RED, GREEN, BLUE, WHITE]), "a colour for each of 3 segments, got 4"),
        (flat([RED, RED, RED, GREEN, GREEN, BLUE]), "got no white"),
        (flat([RED, GREEN, WHITE]), "two of one area"),
        (flat([(n % 256, n // 256, 0) for n in range(257)]), "got more than 256 of them"),
    ],
)
def test_an_item_that_is_not_plain_is_left_out_with_a_reason_and_the_others_are_read(described, picture, reason):
    phrases = ["", "a dog", "a cat"]
    read = read_coco250(*described(items(phrases, phrases), picture, TWO))
    with pytest.warns(UserWarning, match=f"item 0 is left out: .*{reason}"):
        assert [found.id for found in read] == ["1"]


def test_a_missing_picture_and_one_that_is_no_png_are_left_out_with_a_reason(described):
    phrases = ["", "a dog", "a cat"]
    json_path, images = described(items(phrases, phrases, phrases), TWO)
    (images / "1.png").write_bytes(png(TWO)[:45])
    read = read_coco250(json_path, images)
    with pytest.warns(UserWarning, match=r"item \d is left out") as warned:
        assert [found.id for found in read] == ["0"]
    first, second = (str(warning.message) for warning in warned)
    assert first.startswith("item 1 is left out: its picture must be a PNG")
    assert second == "item 2 is left out: its picture is missing"


def test_a_picture_of_too_many_pixels_is_left_out(described, monkeypatch):
    read = read_coco250(*described(items(["", "a dog", "a cat"]), TWO))
    monkeypatch.setattr(layout_files, "MOST_PIXELS", 5)
    with pytest.warns(UserWarning, match="at most 5 pixels are read, got 3 x 2"):
        assert list(read) == []


def test_a_folder_without_any_of_the_pictures_is_refused(described, tmp_path):
    json_path, _ = described(items(["", "a dog", "a cat"]))
    with pytest.raises(ValueError, match=r"must hold pictures such as 0\.png"):
        read_coco250(json_path, tmp_path)


def test_an_id_never_leads_out_of_the_folder(described, tmp_path):
    entries = items(["", "a dog", "a cat"], ["", "a dog", "a cat"])
    entries[1]["id"] = "../1"
    TWO.save(tmp_path / "1.png")
    read = read_coco250(*described(entries, TWO))
    with pytest.warns(UserWarning, match=r"item \.\./1 is left out: its picture is missing"):
        assert [found.id for found in read] == ["0"]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "one or more items"),
        ({"0": {}}, "one or more items"),
        (["a dog"], "an item must have id, caption, segments"),
        ([{"id": 0, "caption": "a dog"}], "an item must have"),
        ([{"id": 0, "caption": "a dog", "segments": []}], "an item must have"),
        ([{"id": 0, "caption": "a dog", "segments": ["", 3]}], "an item must have"),
        ([{"id": True, "caption": "a dog", "segments": [""]}], "an item must have"),
        (items([""]) * 2, "an id must be unique, got '0' more than once"),
    ],
)
def test_descriptions_of_another_form_are_refused(described, entries, said):
    with pytest.raises(ValueError, match=said):
        read_coco250(*described(entries, TWO))


def test_a_file_that_is_no_json_is_refused_with_its_name(described):
    json_path, images = described([])
    json_path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"set\.json must be JSON"):
        read_coco250(json_path, images)


def test_an_archive_gives_what_its_folder_gives(described, packed):
    json_path, images = described(items(["", "a dog", "a cat"]), TWO)
    folder = tarfile.TarInfo("./images")
    folder.type = tarfile.DIRTYPE
    archive = packed((folder, b""), (tarfile.TarInfo("./images/0.png"), png(TWO)), (tarfile.TarInfo("note.txt"), b"hi"))
    assert list(read_coco250(json_path, archive)) == list(read_coco250(json_path, images))


def sparse() -> tarfile.TarInfo:
    """A member of a few bytes that claims 3 GB of holes, which tarfile would fill with zeros."""
    info = tarfile.TarInfo("big.png")
    info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(3 * 2**30)}
    return info


def linked(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("0.png")
    info.type, info.linkname = kind, "set.json"
    return info


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../0.png"),
        tarfile.TarInfo("/tmp/0.png"),
        tarfile.TarInfo("images/../../0.png"),
        linked(tarfile.SYMTYPE),
        linked(tarfile.LNKTYPE),
        linked(tarfile.FIFOTYPE),
        sparse(),
    ],
    ids=lambda member: f"{member.name} {member.type.decode()}",
)
def test_an_archive_that_reaches_out_of_itself_is_refused(described, packed, member):
    json_path, _ = described(items(["", "a dog", "a cat"]))
    archive = packed((tarfile.TarInfo("0.png"), png(TWO)), (member, b""))
    with pytest.raises(ValueError, match="must hold files and folders inside itself"):
        read_coco250(json_path, archive)


def test_an_archive_with_a_picture_twice_is_refused(described, packed):
    json_path, _ = described(items(["", "a dog", "a cat"]))
    archive = packed((tarfile.TarInfo("0.png"), png(TWO)), (tarfile.TarInfo("other/0.png"), png(TWO)))
    with pytest.raises(ValueError, match=r"must hold a picture once, got another 0\.png"):
        read_coco250(json_path, archive)


def test_an_archive_is_unpacked_up_to_a_bound(described, packed, monkeypatch):
    json_path, _ = described(items(["", "a dog", "a cat"]))
    archive = packed((tarfile.TarInfo("0.png"), bytes(10**6)))
    assert archive.stat().st_size < 10_000
    monkeypatch.setattr(layout_files, "MOST_BYTES", 10**6)
    with pytest.raises(ValueError, match="must unpack to at most 1,000,000 bytes"):
        read_coco250(json_path, archive)


@pytest.mark.parametrize("cut", [slice(0), slice(40), slice(1, None)], ids=["empty", "truncated", "no gzip"])
def test_a_broken_archive_is_refused(described, packed, cut):
    json_path, _ = described(items(["", "a dog", "a cat"]))
    archive = packed((tarfile.TarInfo("0.png"), png(TWO)))
    archive.write_bytes(archive.read_bytes()[cut])
    with pytest.raises(ValueError, match=r"must be a \.tar\.gz"):
        read_coco250(json_path, archive)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_pickle_is_converted_to_what_json_says(described, tmp_path, as_list):
    json_path, images = described(items(["", "a dog", "a cat"]), TWO)
    entry = {"textual_condition": "a dog and a cat", "segment_descriptions": ["", "a dog", "a cat"]}
    (tmp_path / "set.pkl").write_bytes(pickle.dumps([entry] if as_list else {0: entry}))
    assert convert(tmp_path / "set.pkl", images, tmp_path / "ours") == 1
    assert list(load_layouts(tmp_path / "ours")) == list(read_coco250(json_path, images))


def test_a_pickle_of_another_form_is_refused(described, tmp_path):
    _, images = described([], TWO)
    (tmp_path / "set.pkl").write_bytes(pickle.dumps({0: "a dog"}))
    with pytest.raises(ValueError, match="must have id, textual_condition, segment_descriptions"):
        read_coco250(tmp_path / "set.pkl", images)


PLAIN = {
    "text": ["ä", b"raw", 1, 2.5, True, None, 1 + 2j],
    (1, 2): {3, "four"},
    "masks": np.arange(12).reshape(3, 4) % 3 == 0,
    "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">i4"),
    "names": np.array(["cat", "a dog"]),
    "scalar": np.float32(0.1),
}


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_pickle_of_plain_data_is_read_as_pickle_reads_it(tmp_path, protocol):
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps(PLAIN, protocol))
    found = read_pickle(path)
    assert found.keys() == PLAIN.keys()
    for key, value in PLAIN.items():
        assert type(found[key]) is type(value)
        assert np.array_equal(found[key], value) if isinstance(value, np.ndarray) else found[key] == value
    assert found["masks"].dtype == bool
    assert found["scalar"].dtype == np.float32


class _Runs:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        ([_Runs()], "posix.mkdir is refused"),
        (getattr, "builtins.getattr is refused"),
        (OrderedDict(a=1), "collections.OrderedDict is refused"),
        (np.array([{}, None]), "got elements 'O8'"),
        (np.zeros(2, dtype=[("a", "f8")]), "got elements 'V8'"),
        (np.ndarray, "data must be plain"),
    ],
)
def test_a_pickle_that_names_anything_else_is_refused_with_the_name_and_runs_nothing(
    tmp_path, monkeypatch, value, refused
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(value, 4))
    with pytest.raises(ValueError, match=f"bad.pkl must be a pickle of plain data: .*{refused}"):
        read_pickle(tmp_path / "bad.pkl")
    assert not (tmp_path / "made-by-a-pickle").exists()


def test_elements_that_a_pickle_gives_fields_later_are_refused(tmp_path):
    """The state that follows an element type could otherwise call eight bytes of the file an object."""
    elements = b"cnumpy\ndtype\n(Vf8\nI00\nI01\ntR"
    state = b"(I3\nV<\nN(Va\nt(dVa\n(cnumpy\ndtype\n(Vf8\ntRI0\ntsI8\nI1\nI0\ntb."
    (tmp_path / "bad.pkl").write_bytes(elements + state)
    with pytest.raises(ValueError, match="got elements with fields"):
        read_pickle(tmp_path / "bad.pkl")


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04", b"no pickle", b"r\xff\xff\xff\x7f.", b"](h\x00.", b"]q\x00h\x00a."]
)
def test_bytes_that_are_no_pickle_of_plain_data_are_refused(tmp_path, content):
    (tmp_path / "bad.pkl").write_bytes(content)  # the last one is a list that holds itself
    with pytest.raises(ValueError, match=r"bad\.pkl must be a pickle of plain data"):
        read_pickle(tmp_path / "bad.pkl")


def test_what_is_saved_is_loaded_again_and_may_be_saved_nowhere_twice(tmp_path):
    kept = [laid("b/../c", "", "a dog", ""), laid("a"), laid("long", *(f"thing {n}" for n in range(255)))]
    assert save_layouts(tmp_path / "ours", kept) == 3
    assert list(load_layouts(tmp_path / "ours")) == kept
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "00000.png",
        "00001.png",
        "00002.png",
        "layouts.json",
    ]
    with pytest.raises(FileExistsError, match="layouts are written into a new folder"):
        save_layouts(tmp_path / "ours", kept)


def test_an_empty_segment_is_kept(tmp_path):
    layout = Layout((Segment("a cat", torch.zeros(1, 2).bool()), Segment("a dog", torch.ones(1, 2).bool())))
    save_layouts(tmp_path / "ours", [Laid("0", "a dog", layout)])
    [found] = load_layouts(tmp_path / "ours")
    assert found.layout == layout


def test_a_saved_picture_has_the_segments_numbers_as_its_palettes_indices(tmp_path):
    save_layouts(tmp_path / "ours", [laid("0", "a", "b")])
    with Image.open(tmp_path / "ours" / "00000.png") as image:
        assert (image.mode, np.asarray(image).tolist()) == ("P", [[1, 2, 0]])
        colours = np.asarray(image.convert("RGB")).tolist()[0]
    assert colours[2] == [255, 255, 255]
    assert colours[0] != colours[1]


def failing():
    yield laid("0")
    raise RuntimeError("the disk is full")


@pytest.mark.parametrize(
    ("layouts", "error", "said"),
    [
        (failing(), RuntimeError, "the disk is full"),
        ([], ValueError, "one or more, got none"),
        ([laid("0"), laid("0")], ValueError, "an id must be unique, got '0'"),
        ([laid("0"), laid("1", *"x" * 256)], ValueError, "at most 255 segments, got 256"),
    ],
)
def test_layouts_that_cannot_be_saved_whole_leave_nothing_behind(tmp_path, layouts, error, said):
    with pytest.raises(error, match=said):
        save_layouts(tmp_path / "ours", layouts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("layouts.json", b'{"format": "other", "layouts": []}', 'must be an object with "format"'),
        ("layouts.json", b"[]", 'must be an object with "format"'),
        ("layouts.json", b'{"format": "attnreg layouts 1", "layouts": [1]}', "must have id, caption, phrases"),
        ("00000.png", b"", "must be the layout of '0': its picture must be a PNG"),
        ("00000.png", png(Image.new("RGB", (3, 1))), "it must have a palette, got mode RGB"),
        ("00000.png", png(Image.new("L", (3, 1), 3).convert("P")), "2 segments of layouts.json, got number 3"),
        ("00000.png", png(Image.new("P", (3, 1), 0)), "at least one segment must have a pixel"),
    ],
)
def test_a_folder_that_was_not_saved_so_is_refused(tmp_path, name, content, said):
    save_layouts(tmp_path / "ours", [laid("0")])
    (tmp_path / "ours" / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        list(load_layouts(tmp_path / "ours"))


@needs_shared
def test_the_250_layouts_of_the_paper_are_read_but_for_the_broken_one(clip_tokenizer, tmp_path):
    paths = SHARED / "dense-diffusion-coco250.json", SHARED / "dense-diffusion-layouts.tar.gz"
    with pytest.warns(UserWarning, match="item 57 is left out: .* each of 3 segments, got 2") as warned:
        found = list(read_coco250(*paths))
    assert len(warned) == 1
    assert [own.id for own in found] == [str(n) for n in range(250) if n != 57]
    for own in found:
        assert own.layout.size == (512, 512)
        assert own.layout.masks.any(0).all()
        areas = [int(segment.mask.count_nonzero()) for segment in own.layout.segments]
        assert areas[1:] == sorted(areas[1:], reverse=True)
        positions = placed(clip_tokenizer, own.caption, own.layout)
        assert [bool(p) for p in positions] == [bool(phrase) for phrase in own.layout.phrases]
    save_layouts(tmp_path / "ours", found)
    again = list(load_layouts(tmp_path / "ours"))
    assert [own.layout.digest() for own in again] == [own.layout.digest() for own in found]
