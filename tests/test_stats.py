"""Against values printed in textbooks and papers, and against the definitions themselves."""

import math
import random

import pytest

from lawm_policy import stats
from lawm_policy.stats import Interval, Pairs

# Fagerland, Lydersen & Laake (2014), airway hyper-responsiveness before and after: 1, 1, 7, 12.
AIRWAY = Pairs(both=1, only_a=1, only_b=7, neither=12)


def test_wilson_textbook():
    # Newcombe (1998), table I: 81/263, 15/148, 0/20, 1/29
    for (r, n), (low, high) in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0000, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        got = stats.wilson(r, n)
        assert (round(got.low, 4), round(got.high, 4)) == (low, high)
        assert got.value == r / n


def test_edges():
    assert stats.wilson(20, 20).high == 1.0 and stats.wilson(0, 20).low == 0.0
    assert (stats.wilson(0, 0).low, stats.wilson(0, 0).high) == (0.0, 1.0)
    assert math.isnan(stats.wilson(0, 0).value)
    with pytest.raises(ValueError, match="found 3 of 2"):
        stats.wilson(3, 2)
    with pytest.raises(ValueError, match="confidence"):
        stats.wilson(1, 2, confidence=95)


def test_mcnemar_exact():
    assert stats.mcnemar_exact(1, 7) == pytest.approx(0.0703, abs=5e-5)
    assert stats.mcnemar_exact(0, 5) == pytest.approx(0.0625)
    assert stats.mcnemar_exact(0, 6) == pytest.approx(0.03125)
    assert stats.mcnemar_exact(3, 3) == 1.0 and stats.mcnemar_exact(0, 0) == 1.0
    assert stats.mcnemar_exact(7, 1) == stats.mcnemar_exact(1, 7)


def test_paired_difference_published():
    got = stats.paired_difference(AIRWAY)
    assert got.value == pytest.approx(6 / 21)
    assert (round(got.low, 3), round(got.high, 3)) == (0.026, 0.517)
    swapped = stats.paired_difference(Pairs(1, 7, 1, 12))
    assert (swapped.low, swapped.high) == pytest.approx((-got.high, -got.low))


def test_paired_difference_has_width_when_all_agree():
    got = stats.paired_difference(Pairs(10, 0, 0, 10))
    assert got.value == 0 and got.low < -0.1 and got.high > 0.1
    every = stats.paired_difference(Pairs(0, 0, 20, 0))
    z2 = 1.959964**2  # all pairs disagree one way: the bound has a closed form
    assert every.value == 1 and every.high == pytest.approx(1.0)
    assert every.low == pytest.approx((20 - z2) / (20 + z2), abs=1e-6)


def test_paired_difference_covers():
    """Simulated coverage near the nominal 95%, at a size like one evaluation."""
    rng, hits, truth = random.Random(0), 0, 0.35 - 0.15
    for _ in range(1000):
        cells = [0, 0, 0, 0]
        for _ in range(60):
            u = rng.random()
            cells[0 if u < 0.3 else 1 if u < 0.45 else 2 if u < 0.8 else 3] += 1
        got = stats.paired_difference(Pairs(*cells))
        hits += got.low <= truth <= got.high
    assert 0.93 <= hits / 1000 <= 0.97


def test_pairs_count():
    assert Pairs.count([1, 1, 0, 0, 1], [1, 0, 1, 0, 0]) == Pairs(1, 2, 1, 1)
    assert Pairs(1, 2, 1, 1).rate_a == pytest.approx(0.6)
    with pytest.raises(ValueError, match="2 and 1"):
        Pairs.count([True, False], [True])


def test_seed_difference():
    # Student's sleep data: mean 1.58, 95% interval 0.7001142 to 2.4598858 (R: t.test paired)
    sleep = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    got = stats.seed_difference(sleep)
    assert (got.value, got.low, got.high) == pytest.approx((1.58, 0.7001142, 2.4598858), abs=1e-6)
    one = stats.seed_difference([0.2])
    assert one.value == 0.2 and one.to_json() == {"value": 0.2, "low": None, "high": None}
    with pytest.raises(ValueError, match="none"):
        stats.seed_difference([])


def test_episodes_to_decide():
    # z = 1.959964, 0.841621; discordance 0.3, difference 0.1: 234 pairs
    assert stats.episodes_to_decide(0.1, 0.3) == math.ceil(
        ((1.959964 * 0.3**0.5 + 0.841621 * 0.29**0.5) / 0.1) ** 2
    )
    assert stats.episodes_to_decide(-0.1, 0.3) == stats.episodes_to_decide(0.1, 0.3)
    assert stats.episodes_to_decide(0.0, 0.3) is None
    with pytest.raises(ValueError, match="disagreement"):
        stats.episodes_to_decide(0.4, 0.3)


def test_episodes_to_decide_has_the_power_it_claims():
    n = stats.episodes_to_decide(0.2, 0.4)
    assert n is not None
    rng, found = random.Random(1), 0
    for _ in range(400):
        up = down = 0
        for _ in range(n):
            u = rng.random()
            up, down = up + (u < 0.3), down + (0.3 <= u < 0.4)
        found += stats.mcnemar_exact(down, up) < 0.05
    assert 0.70 <= found / 400 <= 0.88  # the exact test is a little conservative


def test_verdict_names_the_better_or_says_undecided():
    assert stats.verdict(Interval(0.2, 0.1, 0.3)).startswith("B is better than A (B - A: +20.0 points")
    assert stats.verdict(Interval(-0.2, -0.3, -0.1), a="scratch", b="lawm").startswith("scratch is better")
    assert stats.verdict(Interval(0.1, -0.1, 0.3), 0.25) == (
        "Undecided: B - A is +10.0 points, 95% interval -10.0 to +30.0, p = 0.250."
    )
    assert stats.verdict(Interval(0.2, 0.1, 0.3), 1e-5).endswith("p < 0.001).")
    assert (stats.probability(0.0703), stats.probability(1e-9)) == ("0.070", "<0.001")
    assert "one seed" in stats.verdict(stats.seed_difference([0.1]))
