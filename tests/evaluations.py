"""Evaluations of the fake suite, as tests ask for them and compare them."""

from dataclasses import replace

from lawm_policy.sim import protocol
from lawm_policy.stages.evaluate import EvaluateArgs


def arguments(out, factory="Walker", run="", **more):
    defaults = {"suite": "fake_suite:suite", "episodes": 3, "workers": 1}
    return EvaluateArgs(run=run, out=out, policy_factory=f"fake_suite:{factory}", **(defaults | more))


def episodes(out):
    """Everything but the time it took, in the grid's order."""
    records = [replace(r, seconds=0.0) for r in protocol.read(out)]
    keys = [r.episode for r in records]
    assert len(keys) == len(set(keys)), "an episode was doubled"
    return sorted(records, key=lambda r: r.episode)
