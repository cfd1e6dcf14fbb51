"""An output folder is there whole or not at all, and nobody's files are lost."""

import pytest

from analysis.folder import whole_folder


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_when_the_block_ends_and_nothing_else_stays(tmp_path):
    out = tmp_path / "deep" / "out"
    with whole_folder(out, "a maker") as draft:
        (draft / "page.html").write_text("hello")
        assert not out.exists()
        assert draft.parent == out.parent
    assert names(out) == ["made-by.json", "page.html"]
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_nothing(tmp_path, error):
    with pytest.raises(error), whole_folder(tmp_path / "out", "a maker") as draft:
        (draft / "page.html").write_text("hello")
        raise error
    assert names(tmp_path) == []


def test_a_former_folder_of_the_same_maker_is_replaced_only_when_the_new_one_is_whole(tmp_path):
    out = tmp_path / "out"
    for text in ("old", "new"):
        with whole_folder(out, "a maker") as draft:
            (draft / text).write_text(text)
            if text == "new":
                assert names(out) == ["made-by.json", "old"]
    assert names(out) == ["made-by.json", "new"]
    with pytest.raises(RuntimeError), whole_folder(out, "a maker"):
        raise RuntimeError
    assert names(out) == ["made-by.json", "new"]
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out", "a maker") as draft:
        (draft / "page.html").write_text("hello")
    assert names(tmp_path / "out") == ["made-by.json", "page.html"]


@pytest.mark.parametrize("mark", [None, '{"made_by": "another"}', "no json"])
def test_a_folder_with_anything_else_is_refused_and_left_alone(tmp_path, mark):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("ten years of work")
    if mark:
        (out / "made-by.json").write_text(mark)
    before = names(out)
    with pytest.raises(ValueError, match="holds something else than a former a maker"), whole_folder(out, "a maker"):
        pytest.fail("the block must not run")
    assert names(out) == before
    assert names(tmp_path) == ["out"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ValueError, match="is a file"), whole_folder(tmp_path / "out", "a maker"):
        pytest.fail("the block must not run")


def test_what_somebody_put_there_meanwhile_is_left_alone(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="holds something else"), whole_folder(out, "a maker"):
        out.mkdir()
        (out / "thesis.tex").write_text("ten years of work")
    assert names(out) == ["thesis.tex"]
    assert names(tmp_path) == ["out"]
