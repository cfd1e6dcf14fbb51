"""One line that traces any pipeline: what becomes a run, what is refused, and that nothing stays behind."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regulate import AttentionRegulation, applied
from tracer.capture import Capture
from tracer.passes import following
from tracer.pictures import digest
from tracer.recording import recording
from tracer.sites import attention_sites
from tracer.store import Store

EXACT = Capture(tokens="all", precision="float32")
PROMPT = "a cat and a dog"


def hooks_of(pipe) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(autouse=True)
def untouched(tiny_pipe):
    """After each test the pipeline is what it was."""
    own, names = type(tiny_pipe), set(vars(tiny_pipe.unet))
    yield
    assert type(tiny_pipe) is own
    assert set(vars(tiny_pipe.unet)) == names
    assert hooks_of(tiny_pipe) == 0
    assert torch._C._len_torch_function_stack() == 0


def test_one_line_traces_a_call_and_closes_the_file(tiny_pipe, tmp_path):
    with recording(tiny_pipe, tmp_path / "run.duckdb"):
        image = tiny_pipe(PROMPT, num_inference_steps=2, generator=seeded(7)[0]).images[0]
    with Store.open(tmp_path / "run.duckdb") as store:
        found = store.sql("FROM images").iloc[0]
        assert (found["image"], found["prompt"], found["seed"], found["done"]) == (0, PROMPT, 7, True)
        assert found["image_sha256"] == digest(image)
        assert store.maps(0, "dog", size=16).shape == (2, 3, 4, 16, 16)
        assert store.sql("SELECT status, method FROM runs").iloc[0].tolist() == ["done", "plain"]
        assert store.verify()["whole"].all()


def test_an_image_is_durable_when_its_call_returns(tiny_pipe, store):
    with recording(tiny_pipe, store):
        for done in (1, 2):
            tiny_pipe(PROMPT, num_inference_steps=2)
            assert store.sql("SELECT count(*) FILTER (done) n FROM images")["n"].tolist() == [done]
            assert store.verify()["whole"].all()


def test_calls_of_one_specification_are_one_run(tiny_pipe, store):
    with recording(tiny_pipe, store) as session:
        tiny_pipe([PROMPT, "a lion"], num_inference_steps=2, num_images_per_prompt=2, generator=seeded(1, 2, 3, 4))
        tiny_pipe("a crown", num_inference_steps=2)
        assert session.run_id == 1
        tiny_pipe("a crown", num_inference_steps=3)
        assert session.run_id == 2
    images = store.sql("SELECT run_id, sample, prompt, seed FROM images ORDER BY image").astype(object)
    assert images.where(images.notna(), None).to_numpy().tolist() == [
        [1, 0, PROMPT, 1], [1, 1, PROMPT, 2], [1, 2, "a lion", 3], [1, 3, "a lion", 4], [1, 4, "a crown", None],
        [2, 0, "a crown", None],
    ]  # fmt: skip
    assert store.sql("SELECT DISTINCT status FROM runs")["status"].tolist() == ["done"]
    assert store.verify()["whole"].all()


def test_a_seed_is_noted_only_where_it_is_the_image_s_own(tiny_pipe, store):
    with recording(tiny_pipe, store):
        tiny_pipe(PROMPT, num_inference_steps=2, num_images_per_prompt=2, generator=seeded(5)[0])
    assert store.sql("SELECT seed FROM images")["seed"].isna().all()


def test_a_call_that_raises_fails_its_run_and_the_next_one_begins_another(tiny_pipe, store):
    def stop(pipe, step, timestep, kwargs):
        raise KeyboardInterrupt

    with recording(tiny_pipe, store):
        tiny_pipe(PROMPT, num_inference_steps=2)
        with pytest.raises(KeyboardInterrupt):
            tiny_pipe(PROMPT, num_inference_steps=2, callback_on_step_end=stop)
        tiny_pipe(PROMPT, num_inference_steps=2)
    assert store.sql("SELECT status FROM runs ORDER BY run_id")["status"].tolist() == ["failed", "done"]
    assert store.sql("SELECT done FROM images ORDER BY image")["done"].tolist() == [True, False, True]
    assert store.verify()["whole"].all()


@pytest.mark.parametrize("first", ["recording", "method"])
def test_the_targets_that_a_method_was_told_are_noted_of_each_image(tiny_pipe, store, first):
    prompts, targets = ["a cat and a dog", "a lion and a bird"], [["dog"], ["lion", "bird"]]
    blocks = [
        lambda: recording(tiny_pipe, store, EXACT),
        lambda: applied(tiny_pipe, AttentionRegulation(), prompts, targets, seeds=(0, 1)),
    ]
    with ExitStack() as stack:
        for block in blocks if first == "recording" else reversed(blocks):
            stack.enter_context(block())
        tiny_pipe(prompts, num_inference_steps=1)
    with recording(tiny_pipe, store, EXACT):
        tiny_pipe(prompts, num_inference_steps=1)
    with (
        recording(tiny_pipe, store, EXACT, targets=["a"]),
        applied(tiny_pipe, AttentionRegulation(), prompts, targets, seeds=(0, 1)),
    ):
        tiny_pipe(prompts, num_inference_steps=1)
    found = store.sql("SELECT run_id, sample, word FROM words WHERE branch = 'cond' AND is_target ORDER BY ALL")
    told = {(run, sample): group["word"].tolist() for (run, sample), group in found.groupby(["run_id", "sample"])}
    assert told == {(1, 0): ["dog"], (1, 1): ["bird", "lion"], (3, 0): ["a"], (3, 1): ["a"]}


@pytest.mark.parametrize("first", ["recording", "method"])
def test_edited_maps_lie_beside_the_original_ones_whichever_block_comes_first(tiny_pipe, store, first):
    method = AttentionRegulation()

    def draw(run):
        return tiny_pipe(PROMPT, num_inference_steps=4, generator=run.generators, **run.call).images[0]

    if first == "recording":
        with recording(tiny_pipe, store, EXACT), applied(tiny_pipe, method, PROMPT, ["cat", "dog"]) as run:
            traced = draw(run)
    else:
        with applied(tiny_pipe, method, PROMPT, ["cat", "dog"]) as run, recording(tiny_pipe, store, EXACT):
            traced = draw(run)
    with applied(tiny_pipe, method, PROMPT, ["cat", "dog"]) as run:
        assert digest(draw(run)) == digest(traced)
    assert store.sql("SELECT method FROM runs")["method"].tolist() == ["regulation"]
    edited = store.sql("SELECT DISTINCT call, path FROM attn WHERE phase = 'edited' ORDER BY ALL")
    assert set(edited["call"]) == {0, 1}
    assert len(edited) == 2 * 3
    site = edited["path"][0]
    original, after = (store.maps(0, "cat", steps=[0, 1], layers=site, phase=p) for p in ("original", "edited"))
    assert original.shape == after.shape
    assert np.quantile(after, 0.9) > np.quantile(original, 0.9)
    assert store.verify()["whole"].all()


def guided_by_gradient(pipe, step, timestep, kwargs):
    """What a method of latent guidance does at the end of a step: a pass of its own, with gradients."""
    with torch.enable_grad():
        latents = kwargs["latents"].detach().requires_grad_()
        text = torch.zeros(len(latents), 16, 32)
        pipe.unet(latents, timestep, encoder_hidden_states=text).sample.sum().backward()
    return {}


@pytest.mark.parametrize("kinds", [("sample",), ("sample", "guidance"), ("guidance",)])
def test_passes_of_a_method_s_guidance_are_kept_on_request_and_marked(tiny_pipe, store, kinds):
    with recording(tiny_pipe, store, Capture(kinds=kinds)):
        tiny_pipe(PROMPT, num_inference_steps=3, callback_on_step_end=guided_by_gradient)
    calls = store.sql("SELECT call, step, kind::VARCHAR k, halves::VARCHAR h FROM calls ORDER BY call")
    every = [
        [2 * step + extra, step, "guidance" if extra else "sample", "[cond]" if extra else "[uncond, cond]"]
        for step in range(3)
        for extra in (0, 1)
    ]
    assert calls.to_numpy().tolist() == [row for row in every if row[2] in kinds]
    assert store.verify()["whole"].all()
    assert len(store.sql("FROM dominance")) == (3 * 7 * 2 if "sample" in kinds else 0)
    assert set(store.sql("SELECT call_kind::VARCHAR k FROM attn")["k"]) == set(kinds)


def test_marked_passes_are_refinement_and_no_step(tiny_pipe, store):
    def refine(pipe, step, timestep, kwargs):
        with passes.marked("refine"):
            pipe.unet(kwargs["latents"], timestep, encoder_hidden_states=torch.zeros(1, 16, 32))
        return {}

    with following(tiny_pipe) as passes, recording(tiny_pipe, store, Capture(kinds=("sample", "refine"))):
        tiny_pipe(PROMPT, num_inference_steps=2, callback_on_step_end=refine)
    calls = store.sql("SELECT step, kind::VARCHAR k FROM calls ORDER BY call").to_numpy().tolist()
    assert calls == [[0, "sample"], [0, "refine"], [1, "sample"], [1, "refine"]]


def test_what_the_model_does_outside_a_call_is_not_recorded(tiny_pipe, store):
    with recording(tiny_pipe, store), torch.no_grad():
        tiny_pipe.unet(torch.zeros(1, 4, 16, 16), 10, torch.zeros(1, 16, 32))
        tiny_pipe(PROMPT, num_inference_steps=2)
        tiny_pipe.unet(torch.zeros(1, 4, 16, 16), 10, torch.zeros(1, 16, 32))
    assert store.sql("SELECT call FROM calls ORDER BY call")["call"].tolist() == [0, 1]


def test_embeddings_need_the_text_behind_them(tiny_pipe, store):
    embeddings, _ = tiny_pipe.encode_prompt(PROMPT, "cpu", 1, False)
    negative, _ = tiny_pipe.encode_prompt("", "cpu", 1, False)
    call = {"prompt_embeds": embeddings, "negative_prompt_embeds": negative, "num_inference_steps": 2}
    with recording(tiny_pipe, store), pytest.raises(ValueError, match=r"recording\(prompt=\.\.\.\)"):
        tiny_pipe(**call)
    assert store.sql("FROM runs").empty
    with recording(tiny_pipe, store, prompt=PROMPT):
        tiny_pipe(**call)
    assert store.sql("SELECT prompt FROM images")["prompt"].tolist() == [PROMPT]
    assert store.maps(0, "dog", layers=0).shape == (2, 1, 4, 16, 16)
    with (
        recording(tiny_pipe, store, prompt=PROMPT),
        pytest.raises(ValueError, match="a text of 32 tokens, but the tokenizer makes 16"),
    ):
        tiny_pipe(**call | {key: value.repeat(1, 2, 1) for key, value in call.items() if "embeds" in key})


def test_a_target_that_is_not_in_the_prompt_is_refused(tiny_pipe, store):
    with recording(tiny_pipe, store, targets=["glases"]), pytest.raises(ValueError, match="'glases' is not in the"):
        tiny_pipe(PROMPT, num_inference_steps=2)
    assert store.sql("FROM runs").empty


def test_targets_are_noted_and_compared(tiny_pipe, store):
    with recording(tiny_pipe, store, targets=["cat", "dog"]):
        tiny_pipe([PROMPT, "a dog with a cat"], num_inference_steps=2)
    words = store.sql("SELECT sample, word FROM words WHERE is_target ORDER BY sample, word_idx")
    assert words.to_numpy().tolist() == [[0, "cat"], [0, "dog"], [1, "dog"], [1, "cat"]]
    assert set(store.sql("FROM dominance")["word"]) == {"cat", "dog"}


@pytest.mark.parametrize("options", [{"output_type": "np"}, {"output_type": "latent"}, {"return_dict": False}])
def test_images_are_noted_in_whatever_form_they_are_returned(tiny_pipe, store, options):
    with recording(tiny_pipe, store):
        tiny_pipe(PROMPT, num_inference_steps=2, num_images_per_prompt=2, **options)
    assert store.sql("SELECT count(DISTINCT image_sha256) n FROM images WHERE done")["n"].tolist() == [2]


def test_finished_images_are_written_where_the_user_wants(tiny_pipe, store, tmp_path):
    def save(sample, image):
        path = tmp_path / f"{sample.sample}.png"
        image.save(path)
        return str(path)

    with recording(tiny_pipe, store, save=save):
        tiny_pipe(PROMPT, num_inference_steps=2, num_images_per_prompt=2)
    assert store.sql("SELECT file FROM images ORDER BY image")["file"].tolist() == [
        str(tmp_path / f"{i}.png") for i in range(2)
    ]


def test_a_folder_takes_the_images_of_every_call_and_the_trace_finds_them(tiny_pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("traces").mkdir()
    made = []
    for _ in range(2):
        with recording(tiny_pipe, "traces/run.duckdb", save="images"):
            made += tiny_pipe(PROMPT, num_inference_steps=1, num_images_per_prompt=2).images
    with Store.open("traces/run.duckdb") as store:
        files = store.sql("SELECT file FROM images ORDER BY image")["file"].tolist()
    assert files == [f"../images/{run}-{sample}.png" for run in (1, 2) for sample in (0, 1)]
    for file, image in zip(files, made, strict=True):
        assert digest(Image.open(Path("traces") / file)) == digest(image)


def test_one_text_is_no_list_of_targets(tiny_pipe, tmp_path):
    with (
        pytest.raises(ValueError, match="targets must be a list of words, got 'lion'"),
        recording(tiny_pipe, tmp_path / "run.duckdb", targets="lion"),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_or_hooked_when_no_layer_fits(tiny_pipe, tmp_path):
    with (
        pytest.raises(ValueError, match=r"no attention site fits layers=\('nowhere',\); the model has down_blocks"),
        recording(tiny_pipe, tmp_path / "run.duckdb", Capture(layers="nowhere")),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_call_that_the_pipeline_refuses_leaves_no_run(tiny_pipe, store):
    with recording(tiny_pipe, store), pytest.raises(ValueError, match="Only one of"):
        tiny_pipe(PROMPT, num_inference_steps=2, timesteps=[1], sigmas=[1])
    assert store.sql("FROM runs").empty


def test_recording_nests_in_the_passes_that_somebody_follows(tiny_pipe, store):
    with following(tiny_pipe) as outer, recording(tiny_pipe, store):
        tiny_pipe(PROMPT, num_inference_steps=3)
        assert outer.step == 2
    assert attention_sites(tiny_pipe.unet)
