import pytest

from regulate.shares import begun, whole


@pytest.mark.parametrize(
    ("share", "steps", "down", "up"),
    [
        (0.5, 50, 25, 25),
        (0.5, 51, 25, 26),
        (0.5, 25, 12, 13),
        (0.28, 25, 7, 7),
        (0.2, 51, 10, 11),
        (0.0, 9, 0, 0),
        (1.0, 9, 9, 9),
    ],
)
def test_a_share_is_of_whole_steps_or_of_all_that_are_begun(share, steps, down, up):
    assert (whole(share, steps), begun(share, steps)) == (down, up)
