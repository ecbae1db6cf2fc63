"""Film strips show what was seen."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch
from tiny import RECIPES, clip

from lawm_policy.pictures import film_strip
from lawm_policy.recipe import Recipe


@pytest.mark.parametrize("views", [(True, False), (False, True), (True, True)])
def test_a_strip_shows_the_views_that_are_there(tmp_path: Path, views: tuple[bool, ...]) -> None:
    """Where a view is absent its frames are black: a strip of those would say nothing."""
    torch.manual_seed(0)
    film_strip(Recipe(RECIPES["inverse"]), clip(views=views), tmp_path / "strip.png", clips=1)
    with av.open(str(tmp_path / "strip.png")) as file:
        [image] = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    white = (image > 248).all(2)  # the page around the strip
    shown = image[~white]
    assert (shown < 3).all(1).mean() < 0.05, "the background of the clips is grey"
    assert image.shape[1] == pytest.approx(88 * sum(views) * clip().frames_BTVCHW.shape[1], rel=0.05)
