"""Demonstrations in the layout of LIBERO's official HDF5 files, small and made up."""

from __future__ import annotations

import json

import h5py
import numpy as np


def made_demo(rows=14, still=2, seed=0, size=32):
    """What LIBERO records: row t holds command t and what was seen after it; `states` what was before it.

    The brightness of row t's images is 10 (t + 1): one more than the number of commands done before.
    """
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-0.5, 0.5, (rows, 7))
    actions[:, -1] = np.where(np.arange(rows) < rows // 2, -1.0, 1.0)
    actions[:still, :6] = actions[rows - still :, :6] = 0
    joints = np.cumsum(rng.normal(0, 0.05, (rows + 1, 7)), axis=0)  # before command 0, 1, ...
    states = np.concatenate([np.arange(rows)[:, None], joints[:-1], rng.normal(size=(rows, 20))], axis=1)
    shade = (10 * (np.arange(rows) + 1)).astype(np.uint8)
    front = np.broadcast_to(shade[:, None, None, None], (rows, size, size, 3)).copy()
    front[:, : size // 4] //= 2  # the top is darker
    wrist = np.broadcast_to(250 - shade[:, None, None, None], (rows, size, size, 3))
    return {
        "actions": actions,
        "states": states,
        "robot_states": rng.normal(size=(rows, 9)),
        "rewards": np.zeros(rows, np.uint8),
        "dones": np.zeros(rows, np.uint8),
        "obs/agentview_rgb": front,
        "obs/eye_in_hand_rgb": wrist,
        "obs/ee_pos": np.arange(rows)[:, None] + [0, 100, 200],
        "obs/ee_ori": rng.normal(size=(rows, 3)),
        "obs/ee_states": rng.normal(size=(rows, 6)),
        "obs/gripper_states": rng.normal(size=(rows, 2)),
        "obs/joint_states": joints[1:],
    }


def write_hdf5(path, demos, instruction="pick up the cup and place it in the bin", **attributes):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": instruction, "problem_name": "x"})
        data.attrs["bddl_file_name"] = "somewhere/else.bddl"
        data.attrs["env_args"] = "{}"
        data.attrs["num_demos"] = len(demos)
        data.attrs["total"] = sum(len(demo["actions"]) for demo in demos)
        data.attrs.update(attributes)
        for number, demo in enumerate(demos):
            group = data.create_group(f"demo_{number}")
            for name, values in demo.items():
                group[name] = values
    return path


def hostile_demos():
    """Name, what it does to the file's demo_1, and what is said of it."""

    def drop(demo, name):
        del demo[name]

    def link(demo, name):
        drop(demo, name)
        demo[name] = h5py.ExternalLink("secret.hdf5", "/data")

    def soft(demo, name):
        drop(demo, name)
        demo[name] = h5py.SoftLink("/data/demo_0/actions")

    def put(demo, name, values, **more):
        drop(demo, name)
        demo.create_dataset(name, data=values, **more)

    def virtual(demo, name):
        drop(demo, name)
        layout = h5py.VirtualLayout((14, 7), np.float64)
        layout[:] = h5py.VirtualSource("secret.hdf5", "/data", (14, 7))
        demo.create_virtual_dataset(name, layout)

    def external(demo, name):
        drop(demo, name)
        demo.create_dataset(name, (14, 7), np.float64, external=[("/etc/passwd", 0, 14 * 7 * 8)])

    def huge(demo, name):
        drop(demo, name)
        demo.create_dataset(name, (10**9, 7), np.float64, chunks=(100, 7), compression="gzip")

    nan = np.full((14, 7), np.nan)
    return {
        "lacks": (lambda d: drop(d, "actions"), "lacks actions"),
        "no images": (lambda d: drop(d, "obs/eye_in_hand_rgb"), "lacks eye_in_hand_rgb"),
        "external link": (lambda d: link(d, "actions"), "actions is a link to elsewhere"),
        "soft link": (lambda d: soft(d, "actions"), "actions is a link to elsewhere"),
        "virtual": (lambda d: virtual(d, "actions"), "keeps its values in another file"),
        "external storage": (lambda d: external(d, "actions"), "keeps its values in another file"),
        "huge": (lambda d: huge(d, "actions"), "52 GB"),
        "nan": (lambda d: put(d, "actions", nan), "not finite"),
        "text": (lambda d: put(d, "actions", [b"a"]), "expected rows of 7 numbers"),
        "group": (lambda d: (drop(d, "actions"), d.create_group("actions")), "actions is not a dataset"),
        "short": (lambda d: put(d, "actions", np.ones((9, 7))), "rows differ in number: 9 of actions"),
        "short rewards": (lambda d: put(d, "rewards", np.ones(9)), "9 of rewards"),
        "float images": (lambda d: put(d, "obs/agentview_rgb", np.ones((14, 8, 8, 3))), "uint8"),
        "still": (lambda d: put(d, "actions", np.zeros((14, 7))), "nothing moves"),
    }
