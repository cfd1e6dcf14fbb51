import families
import pytest

from regulate.layers import chosen_sites
from tracer.sites import attention_sites

SD = [("down_blocks.0", 2), ("down_blocks.1", 2), ("down_blocks.2", 2), ("mid_block", 1)]
SD += [("up_blocks.1", 3), ("up_blocks.2", 3), ("up_blocks.3", 3)]
SD_SITES = tuple(f"{block}.attentions.{i}.transformer_blocks.0.attn2" for block, n in SD for i in range(n))
SDXL = [("down_blocks.1", 2, 2), ("down_blocks.2", 2, 10), ("mid_block", 1, 10), ("up_blocks.0", 3, 10)]
SDXL += [("up_blocks.1", 3, 2)]
SDXL_SITES = tuple(
    f"{block}.attentions.{i}.transformer_blocks.{layer}.attn2"
    for block, n, of in SDXL
    for i in range(n)
    for layer in range(of)
)


def blocks(sites) -> list[str]:
    return [site.split(".attentions")[0] for site in sites]


def test_stable_diffusion_s_five_layers_are_the_last_down_and_first_up_with_cross_attention():
    assert blocks(chosen_sites(SD_SITES)) == ["down_blocks.2"] * 2 + ["up_blocks.1"] * 3


def test_of_sdxl_s_fifty_layers_there_the_middle_one_of_each_transformer_is_taken():
    assert len(SDXL_SITES) == 70
    chosen = chosen_sites(SDXL_SITES)
    assert blocks(chosen) == ["down_blocks.2"] * 2 + ["up_blocks.0"] * 3
    assert {site.split("transformer_blocks.")[1] for site in chosen} == {"5.attn2"}
    two = [site.split("transformer_blocks.")[1] for site in chosen_sites(SDXL_SITES, per_transformer=2)]
    assert two == ["2.attn2", "7.attn2"] * 5
    assert len(chosen_sites(SDXL_SITES, per_transformer=None)) == 50
    assert len(chosen_sites(SDXL_SITES, per_transformer=99)) == 50


def test_patterns_choose_all_that_fit_in_order_of_execution():
    assert chosen_sites(SD_SITES, ("mid_block.*",)) == (SD_SITES[6],)
    assert blocks(chosen_sites(SD_SITES, ("up_blocks.3.*", "mid_block.*"))) == ["mid_block"] + ["up_blocks.3"] * 3
    assert len(chosen_sites(SDXL_SITES, "down_blocks.2.*")) == 20


def test_what_fits_nothing_is_refused():
    with pytest.raises(ValueError, match=r"no attention site fits layers='middle'; the model has down_blocks\.0"):
        chosen_sites(SD_SITES, "middle")
    with pytest.raises(ValueError, match="per_transformer must be at least 1, or None for all, got 0"):
        chosen_sites(SD_SITES, per_transformer=0)


def test_the_emoji_world_s_are_its_8x8_maps(tiny_pipe):
    assert blocks(chosen_sites(attention_sites(tiny_pipe.unet))) == ["down_blocks.1"] + ["up_blocks.0"] * 2


def test_sdxl_s_own_classes_are_read_the_same_way(clip_tokenizer):
    sites = attention_sites(families.sdxl(clip_tokenizer, clip_tokenizer).unet)
    chosen = chosen_sites(sites)
    assert set(blocks(chosen)) == {"down_blocks.2", "up_blocks.0"}
    transformers = [site.split(".transformer_blocks")[0] for site in chosen]
    assert len(set(transformers)) == len(transformers)
