import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from metrics.machine import counting
from regulate import METHODS, AttentionRegulation, Method, Request, applied, combined, generate
from tracer.capture import Capture
from tracer.pictures import digest
from tracer.store import Store

PROMPT, TARGETS = "a cat and a dog", ("cat", "dog")


def hooks_of(pipe) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


def stock(pipe, seeds, **options):
    chance = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, "num_images_per_prompt": len(seeds)} | options
    return [digest(image) for image in pipe(PROMPT, generator=chance, **options).images]


def request(*seeds: int, **more) -> Request:
    return Request(PROMPT, TARGETS, seeds, steps=3, **more)


def test_plain_equals_stock_diffusers_bit_for_bit_traced_or_not(tiny_pipe, tmp_path):
    expected = stock(tiny_pipe, (3, 4))
    assert generate(tiny_pipe, request(3, 4)).sha256 == expected
    with Store.create(tmp_path / "t.duckdb") as store:
        assert generate(tiny_pipe, request(3, 4), trace=store).sha256 == expected


def test_a_traced_run_is_whole_and_describes_itself(tiny_pipe, tmp_path):
    with Store.create(tmp_path / "t.duckdb") as store:
        both = Capture(branches=("cond", "uncond"), tokens="all", precision="float32")
        asked = request(3, 4, 5, batch=2)
        made = generate(tiny_pipe, asked, AttentionRegulation(), trace=store, capture=both, folder=tmp_path / "images")
        assert store.verify(made.run_id)["whole"].all()
        run = store.sql("SELECT method, n_steps, guidance, height, status FROM runs").iloc[0].to_dict()
        samples = store.sql("SELECT seed, image_sha256, image FROM samples ORDER BY sample")
        kinds = store.sql("SELECT branch::VARCHAR branch, phase::VARCHAR phase, count(*) n FROM maps_f32 GROUP BY ALL")
        calls = store.sql("SELECT step, count(*) n FROM calls GROUP BY step ORDER BY step")
    assert run == {"method": "regulation", "n_steps": 3, "guidance": 5.0, "height": 64, "status": "done"}
    assert samples["seed"].tolist() == [3, 4, 5]
    assert samples["image_sha256"].tolist() == made.sha256
    assert all((tmp_path / "images" / f"{seed}.png").read_bytes() for seed in (3, 4, 5))
    counts = {(row.branch, row.phase): row.n for row in kinds.itertuples()}
    whole = 3 * 3 * 7 * 4 * 16  # images, steps, sites, heads, tokens
    edited = 3 * 2 * 3 * 4 * 16  # two of three steps; the last down block has one site, the first up block two
    assert counts[("cond", "original")] == counts[("uncond", "original")] == whole
    assert counts[("cond", "edited")] == edited
    assert calls["n"].tolist() == [3, 3, 3]


def test_regulation_changes_the_images_and_repeats(tiny_pipe):
    plain, first = (
        generate(tiny_pipe, request(3, 4)),
        generate(tiny_pipe, request(3, 4), AttentionRegulation()),
    )
    assert all(a != b for a, b in zip(plain.sha256, first.sha256, strict=True))
    assert generate(tiny_pipe, request(3, 4), AttentionRegulation()).sha256 == first.sha256


def test_the_block_around_a_user_s_own_call_gives_what_generate_gives(tiny_pipe):
    expected = generate(tiny_pipe, request(3, 4), AttentionRegulation()).sha256
    with applied(tiny_pipe, AttentionRegulation(), PROMPT, TARGETS, seeds=(3, 4)) as run:
        images = tiny_pipe(
            PROMPT, num_inference_steps=3, guidance_scale=5.0, num_images_per_prompt=2,
            generator=run.generators, **run.call,
        ).images  # fmt: skip
    assert [digest(image) for image in images] == expected
    assert hooks_of(tiny_pipe) == 0


def test_regulation_works_without_guidance(tiny_pipe):
    free = request(3, guidance=1.0)
    plain = generate(tiny_pipe, free)
    assert plain.sha256 == stock(tiny_pipe, (3,), guidance_scale=1.0)
    assert generate(tiny_pipe, free, AttentionRegulation()).sha256 != plain.sha256


def test_a_second_call_in_the_same_block_starts_anew(tiny_pipe):
    with applied(tiny_pipe, AttentionRegulation(), PROMPT, TARGETS, seeds=(3,)) as run:
        made = []
        for _ in range(2):
            chance = torch.Generator().manual_seed(3)
            made.append(digest(tiny_pipe(PROMPT, num_inference_steps=3, generator=chance, **run.call).images[0]))
    assert made[0] == made[1]


def test_a_number_is_the_seed_of_one_image(tiny_pipe):
    with applied(tiny_pipe, AttentionRegulation(), PROMPT, TARGETS, seeds=3) as run:
        assert [one.initial_seed() for one in run.generators] == [3]


def test_another_prompt_than_the_one_given_is_refused(tiny_pipe):
    with (
        pytest.raises(ValueError, match="called with another prompt than"),
        applied(tiny_pipe, AttentionRegulation(), PROMPT, TARGETS),
    ):
        tiny_pipe("a cat and a lion", num_inference_steps=2)
    assert hooks_of(tiny_pipe) == 0


def test_another_prompt_is_refused_before_guidance_has_cost_its_passes(tiny_pipe):
    for method, images in ((METHODS["attend-and-excite"], 2), (METHODS["initno"], 1)):
        wrong = ["a cat and a lion", "a cat and a dog"][:images]
        named = [PROMPT, "a cat and a bird"][:images]
        with (
            counting(tiny_pipe.unet.conv_in) as count,  # the first layer: a pass that is refused does not come to it
            pytest.raises(ValueError, match="called with another prompt than"),
            applied(tiny_pipe, method, named, [TARGETS, ("cat", "bird")][:images], seeds=range(images)),
        ):
            tiny_pipe(wrong, num_inference_steps=2)
        assert count.passes == 0


def test_a_block_whose_prompt_was_refused_still_guards_the_next_call(tiny_pipe):
    with applied(tiny_pipe, METHODS["attend-and-excite"], PROMPT, TARGETS):
        for _ in range(2):
            with pytest.raises(ValueError, match="called with another prompt than"):
                tiny_pipe("a cat and a lion", num_inference_steps=2)
        tiny_pipe(PROMPT, num_inference_steps=1)


def test_a_record_of_composed_passes_is_refused(tiny_pipe):
    with (
        pytest.raises(ValueError, match="composable gives the network other texts than the prompts"),
        applied(tiny_pipe, METHODS["composable"], PROMPT, TARGETS, record=lambda tap, edited: None),
    ):
        pass
    assert hooks_of(tiny_pipe) == 0


def test_another_number_of_images_is_refused(tiny_pipe):
    with (
        pytest.raises(ValueError, match="called for 2 images, the block for 1"),
        applied(tiny_pipe, AttentionRegulation(), PROMPT, TARGETS),
    ):
        tiny_pipe(PROMPT, num_inference_steps=2, num_images_per_prompt=2)


@pytest.mark.parametrize(
    ("prompt", "targets", "message"),
    [
        (PROMPT, ("glases",), "target 'glases' is not in the prompt; words are a, cat, and, a, dog"),
        (" and ".join(["a cat"] * 9), ("cat",), "must fit into 16 tokens"),
        (PROMPT, (), "needs at least one target"),
    ],
)
def test_wrong_requests_are_refused_and_nothing_is_written(tiny_pipe, tmp_path, prompt, targets, message):
    with Store.create(tmp_path / "t.duckdb") as store:
        with pytest.raises(ValueError, match=message):
            generate(tiny_pipe, Request(prompt, targets), AttentionRegulation(), store, folder=tmp_path / "images")
        assert store.sql("SELECT * FROM runs").empty
    assert not (tmp_path / "images").exists()
    assert hooks_of(tiny_pipe) == 0


def test_an_interrupt_leaves_no_hook_and_a_failed_run(tiny_pipe, tmp_path):
    def interrupt(images: int) -> None:
        raise KeyboardInterrupt

    with Store.create(tmp_path / "t.duckdb") as store:
        with pytest.raises(KeyboardInterrupt):
            generate(tiny_pipe, request(1, 2, batch=1), trace=store, done=interrupt)
        assert store.sql("SELECT status FROM runs")["status"].tolist() == ["failed"]
    assert hooks_of(tiny_pipe) == 0


def test_guidance_of_some_images_at_a_time_is_refused_where_a_trace_wants_its_passes(tiny_pipe, tmp_path):
    every, released = Capture(kinds=("sample", "guidance")), METHODS["attend-and-excite"]
    with Store.create(tmp_path / "t.duckdb") as store:
        with pytest.raises(ValueError, match="a trace cannot keep guidance; give the method together=None, or the req"):
            generate(tiny_pipe, request(3, 4), released, store, every)
        with pytest.raises(ValueError, match=r"initno\+attend-and-excite makes passes of some images"):
            generate(tiny_pipe, request(3, 4), combined(METHODS["initno"], released), store, every)
        assert store.sql("SELECT * FROM runs").empty
        once = replace(released, refine_at=())
        generate(tiny_pipe, request(3, 4, batch=1), once, store, every)
        generate(tiny_pipe, request(3, 4), replace(once, needless=False, together=None), store, every)
        counts = store.sql("SELECT run_id, count(*) n FROM calls WHERE kind = 'guidance' GROUP BY ALL ORDER BY ALL")
    assert counts["n"].tolist() == [2 * 3, 2 * 1]  # images x passes; mended, one of three steps is altered


def test_methods_are_found_by_name():
    assert list(METHODS)[:4] == ["plain", "regulation", "regulation-paper", "regulation-fixed"]
    assert METHODS["plain"] == Method()
    assert METHODS["regulation"] == AttentionRegulation()


PLAINLY = """
from regulate import AttentionRegulation, Request, generate
from tracer import load_pipeline

pipe = load_pipeline()
for method in (AttentionRegulation, "regulation"):
    try:
        generate(pipe, Request("a cat and a dog", ("cat", "dog")), method)
    except ValueError as error:
        print(error)
"""


def test_what_is_no_method_is_refused_with_what_was_meant():
    """In a process of its own, whose annotations nobody checks before us, as in a user's."""
    said = subprocess.run([sys.executable, "-c", PLAINLY], check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == [
        "method must be one, as AttentionRegulation() may be, got <class 'regulate.attention_regulation."
        "AttentionRegulation'>",
        "method must be one, as METHODS['regulation'] may be, got 'regulation'",
    ]
