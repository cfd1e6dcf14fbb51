"""The explorer: what it shows is what the store has, whatever is chosen, and it reads little else."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import tracer
from analysis import explore
from analysis.explorer.facts import _words, facts_of, listed
from analysis.explorer.slices import MEAN, Choice, quantiles, word_map
from tracer import Capture
from tracer.database import TraceBusy

FIRST = "up_blocks.0.attentions.0.transformer_blocks.0.attn2"


@pytest.fixture
def pictures(traced) -> list[np.ndarray]:
    """The images of the trace, in its order."""
    return [traced.pictures[method, seed] for method in ("plain", "regulation") for seed in traced.request.seeds]


@pytest.fixture
def explorer(traced, pictures):
    return explore(traced.store, pictures=pictures)


def image_of(traced, number: int):
    return facts_of(traced.store, listed(traced.store).set_index("image", drop=False).loc[number])


@pytest.mark.parametrize(("layers", "paths"), [("8x8", None), (FIRST, [FIRST])])
@pytest.mark.parametrize("head", [MEAN, 1])
@pytest.mark.parametrize(("number", "phase", "step"), [(0, "original", 2), (3, "original", 0), (4, "edited", 1)])
def test_a_map_is_the_stores_own_averaged_over_the_heads_and_layers_chosen(
    traced, layers, paths, head, number, phase, step
):
    image = image_of(traced, number)
    if phase == "edited" and paths is None:
        paths = layers = FIRST
    shown = word_map(traced.store, image, image.word("elephant"), Choice(layers, head, step, phase))
    size = None if paths else 8
    maps = traced.store.maps(number, word="elephant", steps=step, layers=paths, size=size, phase=phase)[0]
    expected = maps.mean((0, 1)) if head == MEAN else maps[:, head].mean(0)
    np.testing.assert_allclose(shown, expected, rtol=1e-6)


def test_curves_and_matrix_are_the_quantiles_of_the_maps(traced):
    image = image_of(traced, 1)
    maps = traced.store.maps(1, word="cat", layers=FIRST)[:, 0]  # step head height width
    expected = np.quantile(maps.reshape(*maps.shape[:2], -1), 0.9, axis=-1)
    word = image.words.index(image.word("cat"))
    found = quantiles(traced.store, image, "original")
    assert found.steps == (0, 1, 2, 3)
    np.testing.assert_allclose(found.curves(Choice(FIRST))[:, word], expected.mean(1), rtol=1e-4)
    np.testing.assert_allclose(found.curves(Choice(FIRST, head=1))[:, word], expected[:, 1], rtol=1e-4)
    layer = [layer.path for layer in image.layers].index(FIRST)
    np.testing.assert_allclose(found.matrix(Choice(FIRST, step=3))[word, layer], expected[3], rtol=1e-4)
    words = [traced.store.maps(1, word=one.name, layers=FIRST)[:, 0] for one in image.words]
    highest = max(one.max((2, 3)).mean(1).max() for one in words)
    assert found.map_top(Choice(FIRST)) == pytest.approx(highest, rel=1e-5)


def test_what_was_not_edited_has_no_numbers(traced):
    image = image_of(traced, 4)
    found = quantiles(traced.store, image, "edited")
    assert found.steps == image.edited
    acted = [layer.number in image.edited_layers for layer in image.layers]
    assert np.isfinite(found.p90[:, :, acted]).all()
    assert np.isnan(found.p90[:, :, np.logical_not(acted)]).all()
    assert np.isnan(found.matrix(Choice("8x8", step=3))).all()
    nothing = quantiles(traced.store, image_of(traced, 0), "edited")
    assert (nothing.steps, nothing.curves(Choice("8x8")).shape) == ((), (0, 5))
    assert np.isnan(nothing.map_top(Choice("8x8")))


def test_what_the_page_is_sent_is_the_map_and_one_scale_for_both_images(traced, explorer):
    explorer.select(image=0, other=5, word="cat", layers=FIRST, step=1)
    panes = explorer.view["panes"]
    for pane, number in zip(panes, (0, 5), strict=True):
        sent = np.frombuffer(pane["map"], "<f4").reshape(pane["height"], pane["width"])
        expected = traced.store.maps(number, word="cat", steps=1, layers=FIRST)[0].mean((0, 1))
        np.testing.assert_allclose(sent, expected, rtol=1e-6)
        assert explorer.view["map_top"] >= sent.max()
        highest = max(max(line) for _, _, line in pane["curves"])
        assert explorer.view["curve_top"] >= highest - 1e-6
    words = [word for word, _ in explorer.choices["words"]]
    assert words == ["a", "cat", "and", "an", "elephant"]
    assert [word for word, target in explorer.choices["words"] if target] == ["cat", "elephant"]


def test_the_picture_that_is_sent_is_the_images_own(explorer, pictures):
    explorer.select(image=2)
    sent = np.asarray(Image.open(io.BytesIO(explorer.pictures["2"])))
    assert np.array_equal(sent, pictures[2])


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"word": "glases"}, "word must be one that was recorded, a, cat, and, an, elephant, got 'glases'"),
        ({"step": 99}, r"step must be one of \[0, 1, 2, 3\], got 99"),
        ({"image": 77}, "image must be one of"),
        ({"image": [0]}, r"image must be one of \[0, 1, 2, 3, 4, 5\], got \[0\]"),
        ({"word": ["cat"]}, r"word must be one that was recorded, .*, got \"\['cat'\]\""),
        ({"head": 8}, "head must be one of"),
        ({"layers": "7x7"}, "layers must be one of"),
        ({"phase": "edited"}, r"phase must be one of \['original'\]"),
        ({"seed": 3}, "a choice must name some of image, other, word"),
    ],
)
def test_a_choice_that_is_none_is_refused_and_changes_nothing(explorer, choice, said):
    before = dict(explorer.selection)
    with pytest.raises(ValueError, match=said):
        explorer.select(**choice)
    assert explorer.selection == before == explorer.view["selection"]


def test_what_the_page_asks_for_is_answered_and_what_an_image_lacks_is_mended(explorer):
    explorer.selection = explorer.selection | {"step": 3, "word": "cat"}
    assert (explorer.view["selection"]["step"], explorer.view["panes"][0]["word"]) == (3, "cat")
    explorer.selection = explorer.selection | {"image": 4, "phase": "edited", "word": "zebra", "step": 1}
    shown = explorer.selection
    assert (shown["image"], shown["phase"], shown["step"], shown["word"]) == (4, "edited", 1, "cat")


def test_what_is_asked_only_in_part_is_passed_over(explorer):
    before = dict(explorer.view)
    explorer.selection = {name: value for name, value in explorer.selection.items() if name != "step"}
    assert (explorer.view, explorer.trouble) == (before, "")
    explorer.selection = before["selection"] | {"step": 1}  # and the next one is answered
    assert explorer.view["selection"]["step"] == 1


def test_what_cannot_be_answered_is_said_in_the_page_and_leaves_what_was_shown(explorer, monkeypatch):
    before = dict(explorer.selection)

    def busy(*_):
        raise TraceBusy("run.duckdb is being written")

    monkeypatch.setattr("analysis.explorer.widget.look", busy)
    explorer.selection = before | {"step": 0}
    assert (explorer.trouble, explorer.selection) == ("run.duckdb is being written", before)
    monkeypatch.undo()
    explorer.selection = before | {"step": 0}
    assert (explorer.trouble, explorer.view["selection"]["step"]) == ("", 0)


def test_an_answer_is_one_message(explorer, monkeypatch):
    sent = []
    monkeypatch.setattr(type(explorer), "_send", lambda self, message, buffers=None: sent.append(message["state"]))
    explorer.select(image=2, step=1)
    assert [set(state) for state in sent] == [{"pictures", "selection", "view"}]


def test_a_head_that_the_layers_do_not_have_gives_way_or_is_refused(traced, explorer):
    image = image_of(traced, 0)  # all of its layers have four
    few, *others = (replace(layer, heads=2 if layer.number == 0 else 4) for layer in image.layers)
    image = explorer._facts[0] = replace(image, layers=(few, *others))
    explorer.select(layers=FIRST, head=3)
    explorer.selection = explorer.selection | {"layers": few.path}
    assert (explorer.selection["head"], explorer.choices["heads"]) == (MEAN, [0, 1])
    assert explorer.view["panes"][0]["curves"]
    with pytest.raises(ValueError, match=r"head must be one of \[-1, 0, 1\] .* in layers .*, got 3"):
        explorer.select(layers=few.path, head=3)
    with pytest.raises(LookupError, match=r"layers .* have heads 0 to 1"):
        word_map(traced.store, image, image.words[0], Choice(few.path, 3, 1))


def test_numbers_of_numpys_and_whole_floats_choose_as_others_do(traced, explorer):
    shown = explorer.select(image=np.int64(2), step=2.0, head=np.int32(1)).selection
    assert [(shown[name], type(shown[name])) for name in ("image", "step", "head")] == [(2, int), (2, int), (1, int)]
    with pytest.raises(ValueError, match=r"step must be one of .*, got 1\.5"):
        explorer.select(step=1.5)
    for images in (np.int64(2), np.array([2]), pd.Series([2], index=[7]), [2]):
        assert explore(traced.store, images).selection["image"] == 2
    for images in ([], np.array([]), np.array([1.5]), np.array(["a"])):
        with pytest.raises(ValueError, match="images must be whole numbers of the view images, at least one"):
            explore(traced.store, images)


def test_pictures_may_be_shares_of_one(traced, pictures):
    explorer = explore(traced.store, images=[2, 3], pictures=np.stack(pictures[2:4]).astype(np.float32) / 255)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(explorer.pictures["2"]))), pictures[2])


def test_a_step_that_no_edit_acted_on_says_so(explorer):
    explorer.select(image=4, layers=FIRST, phase="edited", step=3)
    (pane,) = explorer.view["panes"]
    assert (pane["note"], pane["map"]) == ("nothing was edited at step 3", b"")
    explorer.select(word="and")
    assert (explorer.selection["phase"], explorer.selection["step"]) == ("edited", 3)


def test_what_was_not_named_gives_way_to_what_was(traced, explorer):
    explorer.select(image=4, layers="16x16", step=3)
    explorer.select(phase="edited")  # of 8x8 maps, and not at step 3
    shown = explorer.selection
    assert (shown["layers"], shown["phase"]) == ("8x8", "edited")
    assert shown["step"] == max(image_of(traced, 4).edited)
    assert explorer.view["panes"][0]["map"]
    explorer.select(image=0)
    assert (explorer.selection["image"], explorer.selection["phase"]) == (0, "original")
    explorer.select(image=4, phase="edited", layers="16x16")
    assert explorer.view["panes"][0]["note"] == "nothing was edited in layers 16x16"


def test_maps_of_an_edit_are_those_of_the_layers_that_it_acted_on(traced):
    with_size = traced.store.maps(4, word="cat", size=8, phase="edited")
    edited = [layer.path for layer in image_of(traced, 4).layers if layer.number in image_of(traced, 4).edited_layers]
    np.testing.assert_array_equal(with_size, traced.store.maps(4, word="cat", layers=edited, phase="edited"))
    assert with_size.shape[1] == len(edited) < sum(layer.size == "8x8" for layer in image_of(traced, 4).layers)
    with pytest.raises(
        LookupError, match=r"no edited layer fits layers=None, size=16; run 2 has down_blocks.1.* \(8x8\)"
    ):
        traced.store.maps(4, word="cat", size=16, phase="edited")
    with pytest.raises(LookupError, match=r"no edited layer fits .* run 1 has none"):
        traced.store.maps(0, word="cat", phase="edited")


def test_a_figure_shows_itself_in_a_cell(explorer):
    width, height = Image.open(io.BytesIO(explorer.figure()._repr_png_())).size
    assert width > 600
    assert height > 200


def test_it_reads_what_it_shows_and_never_the_whole_file(traced, explorer, monkeypatch):
    read, sql, maps = [], traced.store.sql, traced.store.maps

    def counted(query, params=None):
        read.append(len(table := sql(query, params)))
        return table

    def counted_maps(*args, **options):
        read.append((found := maps(*args, **options)).shape[0] * found.shape[1] * found.shape[2])
        return found

    monkeypatch.setattr(traced.store, "sql", counted)
    monkeypatch.setattr(traced.store, "maps", counted_maps)
    layers, heads, words, steps = 7, 4, 5, 4
    explorer.select(image=2)  # one that was not looked at yet: its numbers, and one word's maps
    assert (
        layers * heads * words * steps < sum(read) < layers * heads * (words * steps + 1) + words + layers + 2 * steps
    )
    whole = sql("SELECT count(*) AS n FROM head_stats").at[0, "n"]
    assert sum(read) < whole / 10
    read.clear()
    explorer.select(word="elephant", step=2)
    assert 0 < sum(read) <= layers * heads  # maps alone


def test_it_remembers_the_numbers_of_the_images_looked_at_last(explorer, monkeypatch):
    monkeypatch.setattr("analysis.explorer.widget.KEPT", 2)
    for image in (0, 1, 2, 1):
        explorer.select(image=image)
    assert list(explorer._read) == [(1, "original"), (2, "original")]


def test_it_stands_still_where_there_are_no_widgets(explorer):
    data, _ = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    width, height = Image.open(io.BytesIO(data["image/png"])).size
    assert width > 600
    assert height > 200


def test_repeated_words_have_the_names_that_the_store_takes():
    rows = pd.DataFrame({"word_idx": [0, 1, 2], "word": ["Cat", "and", "cat"], "is_target": [False, False, True]})
    assert [word.name for word in _words(rows.assign(is_kept=True))] == ["Cat", "and", "cat#2"]
    (second,) = _words(rows.assign(is_kept=rows["is_target"]))  # the first was not recorded, and counts all the same
    assert (second.name, second.place) == ("cat#2", 2)


def test_a_second_word_that_alone_was_recorded_can_be_seen(tiny_pipe, tmp_path):
    with tracer.recording(tiny_pipe, tmp_path / "run.duckdb", Capture(tokens="targets"), targets=["cat#2"]):
        tiny_pipe("a cat and a cat", num_inference_steps=1)
    (pane,) = explore(tmp_path / "run.duckdb").select(word="cat#2").view["panes"]
    assert (pane["word"], pane["note"]) == ("cat#2", "")
    assert pane["map"]


def test_pictures_must_be_one_for_each_image(traced, pictures):
    with pytest.raises(ValueError, match=r"one for each of the images \[0, 1, 2, 3, 4, 5\] .*, got 2; say which"):
        explore(traced.store, pictures=pictures[:2])
    with pytest.raises(ValueError, match=r"one for each .*, got one alone"):
        explore(traced.store, pictures="plain.png")
    assert explore(traced.store, images=2, pictures=pictures[2:3]).selection["image"] == 2
    with pytest.raises(ValueError, match=r"images must be numbers of finished images .* got \[9\]"):
        explore(traced.store, images=[0, 9])


def test_a_trace_given_by_its_path_is_not_held_open(tiny_pipe, tmp_path):
    path = tmp_path / "run.duckdb"
    for _ in range(2):  # a notebook's cells are run again and again
        with tracer.recording(tiny_pipe, path, targets=["cat"]):
            tiny_pipe("a cat", num_inference_steps=1)
        explorer = explore(path)
        assert explorer.select(word="cat") is explorer
    assert explorer.view["panes"][0]["title"] == "plain: a cat"  # no generator, so no seed is known
    assert len(explorer.choices["images"]) == 2
    assert explorer.pictures == {"0": b""}
