from __future__ import annotations

import tiny
import torch

from lawm_policy.policies.baku import Baku, BakuConfig


def outputs(policy: Baku, clip=None, text=None):  # type: ignore[no-untyped-def]
    clip = clip or tiny.clip(4)
    return policy(clip.frames_BTVCHW[:, 0], clip.view_mask_BV, text or clip.text)


def test_the_default_is_within_ten_million_parameters() -> None:
    assert sum(p.numel() for p in Baku(BakuConfig(size=128)).parameters()) <= 10_000_000


def test_views_and_words_both_change_what_it_says() -> None:
    torch.manual_seed(0)
    policy = Baku(tiny.POLICY).eval()
    said = outputs(policy).mixture.mean_BMKZ
    assert not torch.equal(said, outputs(policy, text=("open the drawer",) * 4).mixture.mean_BMKZ)
    assert not torch.equal(
        said, outputs(policy, clip=tiny.clip(4, seed=9), text=tiny.clip(4).text).mixture.mean_BMKZ
    )


def test_a_query_never_sees_a_later_one() -> None:
    torch.manual_seed(0)
    policy = Baku(tiny.POLICY).eval()
    before = outputs(policy).query_BKD
    with torch.no_grad():
        policy.position_ND[-1] += 1.0  # the last query's own token
    after = outputs(policy).query_BKD
    assert torch.equal(before[:, :-1], after[:, :-1]) and not torch.equal(before[:, -1], after[:, -1])


def test_the_batch_does_not_mix() -> None:
    torch.manual_seed(0)
    policy = Baku(tiny.POLICY).eval()
    clip = tiny.clip(4)
    alone = policy(clip.frames_BTVCHW[2:3, 0], clip.view_mask_BV[2:3], clip.text[2:3]).mixture.mean_BMKZ
    torch.testing.assert_close(outputs(policy, clip).mixture.mean_BMKZ[2:3], alone)
