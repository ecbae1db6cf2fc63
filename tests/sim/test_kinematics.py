import numpy as np
import pytest

from lawm_policy.sim.kinematics import EMBODIMENTS, Kinematics, down_rotation, load_chain
from lawm_policy.types import UserError


@pytest.mark.parametrize("name", EMBODIMENTS)
def test_inverse_reaches_every_corner_of_the_workspace(name):
    kinematics = Kinematics(load_chain(name))
    rest = np.array(kinematics.chain.rest)
    low, high = kinematics.chain.limits_A2.T
    for x in (-0.17, 0.0, 0.19):
        for y in (-0.25, 0.0, 0.25):
            for z in (0.02, 0.18):
                for yaw in (-0.8, 0.0, 0.8):
                    q, residual = kinematics.inverse(np.array([x, y, z, yaw]), rest)
                    position, rotation = kinematics.forward(q)
                    assert residual < 1e-3
                    np.testing.assert_allclose(position, [x, y, z], atol=1e-3)
                    np.testing.assert_allclose(rotation, down_rotation(yaw), atol=1e-2)
                    assert (q >= low - 1e-9).all() and (q <= high + 1e-9).all()


@pytest.mark.parametrize("name", EMBODIMENTS)
def test_warm_started_inverse_follows_a_path_without_jumps(name):
    kinematics = Kinematics(load_chain(name))
    q = np.array(kinematics.chain.rest)
    pose = kinematics.pose(q)
    for step in range(120):
        pose += [0.006 * np.cos(step / 20), 0.006 * np.sin(step / 20), -0.0005, 0.005]
        before = q
        q, residual = kinematics.inverse(pose, q)
        assert residual < 1e-3
        assert np.abs(q - before).max() < 0.15


def test_an_unreachable_pose_leaves_a_residual():
    kinematics = Kinematics(load_chain("arm6"))
    _, residual = kinematics.inverse(np.array([1.0, 0.0, 0.1, 0.0]), np.array(kinematics.chain.rest))
    assert residual > 0.1


def test_unknown_embodiments_are_named():
    with pytest.raises(UserError, match="arm5, arm6, arm7, hand, found 'arm9'"):
        load_chain("arm9")
