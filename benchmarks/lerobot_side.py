"""The part of `lerobot_interop.py` that runs in LeRobot's own environment, without lawm_policy.

`read ROOT OUT.npz` reads a store with LeRobotDataset; `write ROOT OUT.npz` writes one with it. Both leave
in OUT.npz what LeRobot itself saw. `write_libero ROOT IN.npz video 20` writes episodes of LIBERO in the form
of its data set on the hub, `write_libero ROOT IN.npz image 10` in the form of most that are derived from it:
single images in the tables, labelled with half of their true rate.
"""

import sys
from collections.abc import Callable

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

FPS = 10
SIZE = 64
LIBERO_STATE = ["x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper", "gripper"]
LIBERO_ACTION = ["x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper"]


def read(root: str, out: str) -> None:
    import lerobot

    plain = LeRobotDataset("local/ours", root=root, video_backend="pyav", return_uint8=True)
    cameras = plain.meta.camera_keys
    vectors = [key for key in ("observation.state", "action") if key in plain.meta.features]
    found: dict[str, list] = {key: [] for key in [*vectors, *cameras]}
    found |= {"timestamp": [], "episode": [], "task": []}
    for i in range(len(plain)):
        item = plain[i]
        for key in vectors:
            found[key].append(item[key].numpy())
        for key in cameras:
            found[key].append(item[key].numpy())
        found["timestamp"].append(float(item["timestamp"]))
        found["episode"].append(int(item["episode_index"]))
        found["task"].append(item["task"])
    arrays = {
        key: np.stack(value) if key in vectors + cameras else np.array(value) for key, value in found.items()
    }
    arrays["version"] = np.array(lerobot.__version__)
    if vectors:  # windows by timestamps, as its training asks for them
        fps = plain.meta.fps
        steps = [n / fps for n in range(8)]
        windows = LeRobotDataset(
            "local/ours",
            root=root,
            video_backend="pyav",
            return_uint8=True,
            delta_timestamps={"action": steps, cameras[0]: [0.0, 4 / fps]},
        )
        picked = np.linspace(0, len(windows) - 1, 25).astype(int)
        arrays["window_index"] = picked
        arrays["window_action"] = np.stack([windows[int(i)]["action"].numpy() for i in picked])
        arrays["window_is_pad"] = np.stack([windows[int(i)]["action_is_pad"].numpy() for i in picked])
        arrays["window_frames"] = np.stack([windows[int(i)][cameras[0]].numpy() for i in picked])
        arrays["stats_action_mean"] = np.asarray(plain.meta.stats["action"]["mean"])
        arrays["stats_image_mean"] = np.asarray(plain.meta.stats[cameras[0]]["mean"])
    np.savez(out, **arrays)  # type: ignore[arg-type]


def write(root: str, out: str) -> None:
    features = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "grip"]},
        "action": {"dtype": "float32", "shape": (2,), "names": {"motors": ["x", "grip"]}},
        "observation.images.front": {
            "dtype": "video",
            "shape": (SIZE, SIZE, 3),
            "names": ["height", "width", "channels"],
        },
    }
    dataset = LeRobotDataset.create(
        "local/theirs", fps=FPS, features=features, root=root, robot_type="their_arm"
    )
    rng = np.random.default_rng(0)
    told: dict[str, list] = {"state": [], "action": [], "front": [], "task": [], "length": []}
    for episode in range(4):
        length = 30 + 5 * episode
        y, x = rng.uniform(5, 40, 2)
        for t in range(length):
            image = np.full((SIZE, SIZE, 3), 40, np.uint8)
            image[int(y) : int(y) + 14, int(x) : int(x) + 14] = (210, 90, 30 + 40 * episode)
            y, x = np.clip([y + 0.7, x - 0.4], 0, SIZE - 14)
            state = np.array([t, episode, np.sin(t)], np.float32)
            action = np.array([t + 0.5, (-1.0) ** t], np.float32)
            task = f"their task {episode % 2}"
            dataset.add_frame(
                {
                    "observation.state": state,
                    "action": action,
                    "observation.images.front": image,
                    "task": task,
                }
            )
            for key, value in (("state", state), ("action", action), ("front", image)):
                told[key].append(value)
        told["task"].append(task)
        told["length"].append(length)
        dataset.save_episode()
    dataset.finalize()
    np.savez(out, **{key: np.array(value) for key, value in told.items()})  # type: ignore[arg-type]


def write_libero(root: str, source: str, form: str, fps: str) -> None:
    told = np.load(source)
    side = told["image_0"].shape[1]
    image = {"dtype": form, "shape": (side, side, 3), "names": ["height", "width", "channels"]}
    features = {
        "observation.images.image": image,
        "observation.images.image2": image,
        "observation.state": {"dtype": "float32", "shape": (8,), "names": {"motors": LIBERO_STATE}},
        "action": {"dtype": "float32", "shape": (7,), "names": {"motors": LIBERO_ACTION}},
    }
    dataset = LeRobotDataset.create(
        "local/libero",
        fps=int(fps),
        features=features,
        root=root,
        robot_type="panda",
        use_videos=form == "video",
    )
    for episode in range(int(told["episodes"])):
        for t in range(len(told[f"action_{episode}"])):
            keys = ("image", "image2")
            images = {f"observation.images.{key}": told[f"{key}_{episode}"][t] for key in keys}
            numbers = {
                "observation.state": told[f"state_{episode}"][t],
                "action": told[f"action_{episode}"][t],
            }
            dataset.add_frame(images | numbers | {"task": str(told[f"task_{episode}"])})
        dataset.save_episode()
    dataset.finalize()


if __name__ == "__main__":
    commands: dict[str, Callable[..., None]] = {"read": read, "write": write, "write_libero": write_libero}
    commands[sys.argv[1]](*sys.argv[2:])
