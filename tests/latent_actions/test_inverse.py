import tiny
import torch

from lawm_policy.latent_actions.inverse import InverseConfig, InverseEncoder, disguise


def test_only_in_training_the_inverse_model_sees_other_colours() -> None:
    torch.manual_seed(0)
    plain, disguised = (
        InverseEncoder(InverseConfig(channels=16, width=32, disguise=on), 32, 2, 8) for on in (False, True)
    )
    disguised.load_state_dict(plain.state_dict())
    clip = tiny.clip(8)
    assert not torch.equal(plain.features(clip), disguised.features(clip))
    assert torch.equal(plain.eval().features(clip), disguised.eval().features(clip))


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
