"""A packed gallery: nothing lost, nothing mixed up, and said where something is smaller."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.page import sprites
from analysis.page.gallery import Entry, Gallery, Verdict
from analysis.page.sprites import Packed, pack
from metrics.decoding import BadImage


def noise(folder: Path, count: int, size: tuple[int, int], method: str = "plain") -> list[Entry]:
    """Return entries of a prompt with images of noise."""
    rng, entries = np.random.default_rng(len(method)), []
    for seed in range(count):
        path = folder / method / f"{seed} #1.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
        entries.append(Entry("COCO", "1", "a cat", "", seed, method, path))
    return entries


def cut(packed: Packed, number: int, place: int) -> np.ndarray:
    """Return an image of a sheet as a browser would cut it out."""
    sheet = packed.sheets[number]
    left, top = place % sheet.columns * sheet.width, place // sheet.columns * sheet.height
    whole = np.asarray(Image.open(io.BytesIO(sheet.webp)).convert("RGB"))
    assert whole.shape == (sheet.lines * sheet.height, sheet.columns * sheet.width, 3)
    return whole[top : top + sheet.height, left : left + sheet.width]


def cells(packed: Packed) -> list[list]:
    return [cell for row in packed.data["rows"] for cell in row[5]]


def test_small_images_come_back_to_the_bit_from_as_many_sheets_as_they_need(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sprites, "SHEET", 64)  # three images of 20 pixels beside each other, two of 24 below
    entries = noise(tmp_path, 8, (20, 24)) + noise(tmp_path, 2, (20, 24), "ours")
    packed = pack(Gallery(tuple(entries), ("plain", "ours")))
    assert (packed.exact, packed.reduced) == (True, False)
    assert [(sheet.columns, sheet.lines) for sheet in packed.sheets] == [(3, 2), (2, 1), (2, 1)]
    for row, seed in zip(packed.data["rows"], range(8), strict=True):
        for cell, method in zip(row[5], ("plain", "ours"), strict=True):
            if cell is not None:
                expected = np.asarray(Image.open(tmp_path / method / f"{seed} #1.png"))
                assert (cut(packed, *cell[:2]) == expected).all()
    assert [row[5][1] is None for row in packed.data["rows"]] == [False] * 2 + [True] * 6


def test_images_of_another_size_have_a_sheet_of_their_own(tmp_path: Path):
    entries = [*noise(tmp_path, 2, (20, 24)), *(replace(e, prompt="a dog") for e in noise(tmp_path, 1, (24, 20), "p"))]
    packed = pack(Gallery(tuple(replace(e, method="plain") for e in entries), ("plain",)))
    assert [(sheet.width, sheet.height) for sheet in packed.sheets] == [(20, 24), (24, 20)]


def test_large_images_are_made_smaller_keep_their_shape_and_link_to_their_files(tmp_path: Path):
    (tmp_path / "page").mkdir()
    packed = pack(Gallery(tuple(noise(tmp_path, 1, (640, 480))), ("plain",), folder=tmp_path / "page"))
    assert (packed.exact, packed.reduced) == (False, True)
    assert [(sheet.width, sheet.height) for sheet in packed.sheets] == [(320, 240)]
    assert [cell[3] for cell in cells(packed)] == ["../plain/0%20%231.png"]


def test_many_images_are_made_as_small_as_it_takes(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(sprites, "PIXELS", 3 * 128 * 128)
    packed = pack(Gallery(tuple(noise(tmp_path, 3, (300, 300))), ("plain",)))
    assert [(sheet.width, sheet.height) for sheet in packed.sheets] == [(128, 128)]


def test_too_many_small_images_are_stored_with_loss_but_not_made_smaller(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(sprites, "EXACT", 2 * 20 * 24 - 1)
    packed = pack(Gallery(tuple(noise(tmp_path, 2, (20, 24))), ("plain",), folder=tmp_path))
    assert (packed.exact, packed.reduced) == (False, False)
    assert [cell[3] for cell in cells(packed)] == ["plain/0%20%231.png", "plain/1%20%231.png"]


def test_verdicts_stand_in_the_order_of_the_targets_with_boxes_in_thousandths_that_end_with_the_image(tmp_path: Path):
    entry = noise(tmp_path, 1, (20, 40))[0]
    verdicts = (Verdict("cat", True, 0.12345, (5.0, 10.0, 10.0, 44.0)), Verdict("<dog>", False))
    ours = replace(entry, method="ours", verdicts=verdicts[::-1])
    packed = pack(Gallery((replace(entry, verdicts=verdicts), ours), ("plain", "ours")))
    assert packed.data["rows"][0][4] == ["cat", "<dog>"]
    for cell in cells(packed):
        assert cell[2] == [[1, 0.123, [250, 250, 500, 1000]], [0, None, None]]
        assert cell[3] is None  # what is exact needs no link


def test_a_method_that_does_not_apply_differs_from_an_image_that_failed(tmp_path: Path):
    entries = tuple(noise(tmp_path, 1, (8, 8)))
    packed = pack(Gallery(entries, ("plain", "dense", "ours"), not_applicable={"COCO": ("dense",)}))
    assert cells(packed)[1:] == ["n/a", None]


@pytest.mark.parametrize("content", [None, b"no image"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes | None):
    path = tmp_path / "0.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadImage, match=r"0\.png must be an image"):
        pack(Gallery((Entry("COCO", "1", "a cat", "", 0, "plain", path),), ("plain",)))


def test_the_same_gallery_is_packed_into_the_same_bytes(tmp_path: Path):
    gallery = Gallery(tuple(noise(tmp_path, 3, (64, 64))), ("plain",))
    assert pack(gallery) == pack(gallery)
