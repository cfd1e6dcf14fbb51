"""Images that are gone or no longer as they were made: they are made again, and the results are the same as before."""

import pytest
from PIL import Image

from analysis.running.lost import is_whole
from analysis.running.missing import Incomplete


@pytest.fixture
def first(small, quiet, tmp_path):
    return quiet(small, tmp_path)


def image_of(results, method):
    images = results.parts[0].images
    return results.run / images.loc[images["method"] == method, "image"].iat[0]


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_batch_of_which_an_image_is_gone_or_cut_short_is_made_again(spoil, first, small, quiet, made, tmp_path):
    count = len(made)
    path = image_of(first, "regulation")
    spoil(path)
    again = quiet(small, tmp_path)
    assert (
        f"made again: regulation on 'a cat and a dog': {path.relative_to(first.run)} is gone or damaged" in quiet.said
    )
    assert made[count:] == [("regulation", "a cat and a dog", (0, 1))]
    assert again.parts[0].board.equals(first.parts[0].board)


def test_a_copy_that_is_gone_is_copied_again(first, small, quiet, made, tmp_path):
    count = len(made)
    path = image_of(first, "syngen")  # has nothing to do
    path.unlink()
    assert quiet(small, tmp_path).parts[0].board.equals(first.parts[0].board)
    assert len(made) == count
    assert is_whole(path)


@pytest.mark.parametrize(("method", "made_again"), [("regulation", 1), ("syngen", 0)])
def test_an_image_of_other_pixels_is_refused_and_made_again_by_the_next_call(
    method, made_again, first, small, quiet, made, tmp_path
):
    path, count = image_of(first, method), len(made)
    Image.new("RGB", (64, 64), "red").save(path)
    with pytest.raises(Incomplete, match=r"1 images are not as they were made, the first images/pairs/.*/0\.png; they"):
        quiet(small, tmp_path)
    again = quiet(small, tmp_path)
    assert len(made) == count + made_again
    assert again.parts[0].board.equals(first.parts[0].board)


def test_a_file_is_whole_from_its_beginning_to_its_end(tmp_path):
    assert not is_whole(tmp_path / "none.png")
    for content in (b"", b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"):
        (tmp_path / "part.png").write_bytes(content)
        assert not is_whole(tmp_path / "part.png")
