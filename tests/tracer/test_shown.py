"""What a notebook's cell shows of images: at most a dozen, small, and what can be done next."""

import base64
import io
import re

import pytest
from PIL import Image

from regulate.generate import Generated
from regulate.method import Standing
from tracer.shown import LARGEST, SHOWN, images_html


def images(number: int, size: tuple[int, int] = (64, 64)) -> list[Image.Image]:
    return [Image.new("RGB", size, (17 * place, 0, 0)) for place in range(number)]


def pictures_in(html: str) -> list[Image.Image]:
    packed = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in packed]


def test_the_first_dozen_are_shown_in_order_and_the_rest_is_said():
    html = images_html(images(SHOWN + 3), "a <b>", "next")
    assert [picture.getpixel((0, 0)) for picture in pictures_in(html)] == [(17 * n, 0, 0) for n in range(SHOWN)]
    assert f"the first {SHOWN} of {SHOWN + 3}" in html
    assert "a &lt;b&gt;" in html


def test_large_ones_are_shown_small_and_stay_as_they_are():
    large = images(1, (1024, 512))
    assert pictures_in(images_html(large, "", ""))[0].size == (LARGEST, LARGEST // 2)
    assert large[0].size == (1024, 512)


@pytest.mark.parametrize(("run", "said"), [(1, "analysis.explore(store)"), (None, "trace=")])
def test_what_was_generated_says_how_to_look_into_it(run, said):
    html = Generated(images(2), ["a", "b"], run)._repr_html_()
    assert len(pictures_in(html)) == 2
    assert said in html


def test_images_of_a_method_that_had_nothing_to_do_say_so():
    html = Generated(images(1), ["a"], 1, Standing("no-op", "no noun has a modifier"))._repr_html_()
    assert "no-op, these are the plain images: no noun has a modifier" in html
