"""Uncertainty of success rates and of their differences, for paired experiments.

Every interval here holds for *one* look at a number of episodes chosen beforehand. Looking after
each episode and stopping when the interval excludes zero finds differences that are not there;
`ONE_LOOK` says so wherever a verdict is printed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

ONE_LOOK = (
    "The interval holds for one look at a number of episodes chosen beforehand, "
    "not for looking again and again until it excludes zero."
)


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its two-sided confidence interval."""

    value: float
    low: float
    high: float

    def excludes(self, reference: float = 0.0) -> bool:
        return reference < self.low or reference > self.high

    def to_json(self) -> dict[str, float | None]:
        """Bounds that do not exist (one seed has no spread) are null: JSON has no NaN."""
        return {
            name: x if math.isfinite(x) else None
            for name, x in (("value", self.value), ("low", self.low), ("high", self.high))
        }


def normal_quantile(confidence: float) -> float:
    """z such that a standard normal lies within +-z with this probability (1.96 for 0.95)."""
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, found {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(successes: float, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a success rate: right at 0 and 1, and for few trials. Half a
    success counts half."""
    _check_count(successes, trials)
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    z = normal_quantile(confidence)
    rate, z2n = successes / trials, z * z / trials
    middle = (rate + z2n / 2) / (1 + z2n)
    half = z / (1 + z2n) * math.sqrt(rate * (1 - rate) / trials + z2n / (4 * trials))
    # At the edges the bound is exactly the edge; the square root leaves a rounding error there.
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == trials else min(1.0, middle + half)
    return Interval(rate, low, high)


@dataclass(frozen=True)
class Pairs:
    """The same episodes under A and under B, counted by who succeeded."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @classmethod
    def count(cls, a: Sequence[bool], b: Sequence[bool]) -> Pairs:
        if len(a) != len(b):
            raise ValueError(f"expected as many episodes on both sides, found {len(a)} and {len(b)}")
        cells = [0, 0, 0, 0]
        for x, y in zip(a, b, strict=True):
            cells[0 if x and y else 1 if x else 2 if y else 3] += 1
        return cls(*cells)

    @property
    def total(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def rate_a(self) -> float:
        return (self.both + self.only_a) / self.total if self.total else math.nan

    @property
    def rate_b(self) -> float:
        return (self.both + self.only_b) / self.total if self.total else math.nan


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar p-value: are the pairs that disagree split like fair coins?"""
    _check_count(only_a, only_a + only_b)
    disagree = only_a + only_b
    tail = sum(math.comb(disagree, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**disagree)


def paired_difference(pairs: Pairs, confidence: float = 0.95) -> Interval:
    """B - A over matched episodes, with Tango's (1998) score interval.

    The usual normal interval has no width when no pair disagrees; the score interval, found by
    inverting the test of each possible difference, stays honest there.
    """
    total = pairs.total
    if total == 0:
        return Interval(math.nan, -1.0, 1.0)
    gain, loss = pairs.only_b, pairs.only_a
    z = normal_quantile(confidence)

    def score(delta: float) -> float:
        a = 2 * total
        b = -gain - loss + (2 * total - gain + loss) * delta
        c = -loss * delta * (1 - delta)
        loss_rate = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = total * (2 * loss_rate + delta * (1 - delta))
        numerator = gain - loss - total * delta
        if variance <= 1e-12:
            return math.copysign(math.inf, numerator) if numerator else 0.0
        return numerator / math.sqrt(variance)

    estimate = (gain - loss) / total
    return Interval(
        estimate, _falling_root(score, z, -1.0, estimate), _falling_root(score, -z, estimate, 1.0)
    )


def seed_difference(differences: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of per-seed differences with Student's t interval: what a new seed would change counts.

    One seed has no spread, hence an unbounded interval.
    """
    n = len(differences)
    if n == 0:
        raise ValueError("expected at least one seed, found none")
    mean = math.fsum(differences) / n
    if n == 1:
        return Interval(mean, -math.inf, math.inf)
    from scipy.stats import t

    deviation = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1))
    half = float(t.ppf(0.5 + confidence / 2, n - 1)) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def episodes_to_decide(
    difference: float, disagreement: float, power: float = 0.8, confidence: float = 0.95
) -> int | None:
    """Paired episodes with which McNemar's test would find this difference with this power.

    `disagreement` is the share of pairs with one success and one failure. None: there is no
    difference to decide. (Miettinen 1968; the usual sample size of matched pairs.)
    """
    if not 0 <= disagreement <= 1 or abs(difference) > disagreement + 1e-12:
        raise ValueError(f"expected |difference| <= disagreement <= 1, found {difference} and {disagreement}")
    if difference == 0:
        return None
    z_alpha, z_power = normal_quantile(confidence), NormalDist().inv_cdf(power)
    spread = math.sqrt(max(disagreement - difference * difference, 0.0))
    return math.ceil(((z_alpha * math.sqrt(disagreement) + z_power * spread) / difference) ** 2)


def verdict(difference: Interval, p_value: float | None = None, a: str = "A", b: str = "B") -> str:
    """One plain sentence: which is better, or that this many episodes cannot say."""
    points, low, high = (100 * x for x in (difference.value, difference.low, difference.high))
    if not math.isfinite(low):
        return f"{b} - {a} is {points:+.1f} points; one seed alone has no interval."
    if math.isnan(points):
        return "No episode in common: nothing can be said."
    tail = "" if p_value is None else f", p {probability(p_value, sign='= ')}"
    interval = f"{points:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}{tail}"
    if difference.excludes(0.0):
        better, worse = (b, a) if points > 0 else (a, b)
        return f"{better} is better than {worse} ({b} - {a}: {interval})."
    return f"Undecided: {b} - {a} is {interval}."


def probability(p: float, sign: str = "") -> str:
    """0.0703 -> "0.070"; what is too small for three digits is said to be."""
    return f"{sign}{p:.3f}" if p >= 0.001 else f"<{' ' if sign else ''}0.001"


def _check_count(successes: float, trials: int) -> None:
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials, found {successes} of {trials}")


def _falling_root(function, target: float, low: float, high: float) -> float:  # type: ignore[no-untyped-def]
    """Bisection: where a falling function of [low, high] crosses `target`."""
    for _ in range(100):
        middle = (low + high) / 2
        if function(middle) > target:
            low = middle
        else:
            high = middle
    return (low + high) / 2
