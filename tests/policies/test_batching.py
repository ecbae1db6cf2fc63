import numpy as np
import pytest
from tiny_policy import build, observation

from lawm_policy.policies.batching import Batcher
from lawm_policy.types import UserError


def test_an_answer_does_not_depend_on_who_else_asks() -> None:
    batcher = Batcher(build(), 8, "cpu")
    seen = [observation(seed, f"go to {seed}") for seed in range(21)]
    alone = [batcher([one])[0] for one in seen]
    together = batcher(seen)
    backwards = batcher(seen[::-1])[::-1]
    assert len(together) == 21
    for a, b, c in zip(alone, together, backwards, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    for one, answer in zip(seen[:3], alone, strict=False):
        np.testing.assert_allclose(batcher.actor.act(one), answer, atol=1e-4)


def test_what_cannot_be_batched_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"expected a policy with `act_batch` and `ensemble` for --batch 4, found object"
    ):
        Batcher(object(), 4, "cpu")
