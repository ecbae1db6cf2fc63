import torch

from lawm_policy.latent_actions.inverse import disguise


def test_a_disguise_exchanges_colours_of_a_clip_alike_in_all_of_its_frames() -> None:
    torch.manual_seed(0)
    frames = torch.rand(64, 3, 2, 3, 4, 4) - 0.5
    other = disguise(frames)
    ways = set()
    for before, after in zip(frames, other, strict=True):
        way = tuple(
            next(
                (k, sign)
                for k in range(3)
                for sign in (1, -1)
                if torch.equal(after[:, :, c], sign * before[:, :, k])
            )
            for c in range(3)
        )
        assert sorted(k for k, _ in way) == [0, 1, 2]
        ways.add(way)
    assert len(ways) > 20  # of 48
