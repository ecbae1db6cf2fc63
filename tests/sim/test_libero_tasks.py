"""LIBERO's list of tasks, and its pickled states read without running anything."""

from __future__ import annotations

import pickle
import runpy

import numpy as np
import pytest
import torch

from lawm_policy.sim import libero_tasks
from lawm_policy.sim.libero_protocol import TASK_COUNTS, task_names
from lawm_policy.sim.libero_tasks import (
    in_words,
    libero_task,
    package_folder,
    read_states,
    task_titled,
    titles,
)
from lawm_policy.types import UserError


@pytest.mark.libero
def test_all_tasks_have_their_files():
    tasks = [libero_task(name) for suite in TASK_COUNTS for name in task_names(suite)]
    assert len({task.problem for task in tasks}) == len(tasks) == 130
    assert all(task.problem.is_file() and task.states.is_file() for task in tasks)
    assert all(task.instruction and task.instruction == task.instruction.lower() for task in tasks)
    assert libero_task("libero_90-0").instruction == "close the top drawer of the cabinet"
    assert (
        libero_task("libero_object-0").instruction == "pick up the alphabet soup and place it in the basket"
    )


@pytest.mark.libero
def test_titles_are_liberos_own():
    """It lists them in a file whose package imports torch and asks questions."""
    path = package_folder() / "benchmark" / "libero_suite_task_map.py"
    listed = runpy.run_path(str(path))["libero_task_map"]
    assert titles() == {suite: listed[suite] for suite in TASK_COUNTS}


def test_a_task_has_one_name_with_and_without_libero(monkeypatch):
    monkeypatch.setattr(libero_tasks, "package_folder", lambda: pytest.fail("looked for LIBERO"))
    known = [title for suite in titles().values() for title in suite]
    assert {suite: len(found) for suite, found in titles().items()} == TASK_COUNTS
    assert len({task_titled(title) for title in known}) == len(known) == 130
    assert task_titled("open_the_middle_drawer_of_the_cabinet") == "libero_goal-0"
    assert task_titled("lift_the_cup") is None
    assert in_words("KITCHEN_SCENE3_turn_on_the_stove") == "turn on the stove"


@pytest.mark.libero
@pytest.mark.parametrize("suite", list(TASK_COUNTS))
def test_stored_states_are_read(suite):
    states_NS = read_states(libero_task(f"{suite}-0").states)
    assert states_NS.shape[0] == 50 and states_NS.dtype == np.float64 and np.isfinite(states_NS).all()
    assert len(np.unique(states_NS, axis=0)) > 1


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_hostile_and_broken_states_are_refused_and_nothing_runs(tmp_path):
    good = np.zeros((3, 5))
    torch.save(good, tmp_path / "good")
    np.testing.assert_array_equal(read_states(tmp_path / "good"), good)
    whole = (tmp_path / "good").read_bytes()
    trap = tmp_path / "trap"
    torch.save(Hostile(trap), tmp_path / "hostile")
    (tmp_path / "pickle").write_bytes(pickle.dumps(Hostile(trap)))
    (tmp_path / "short").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").write_bytes(b"")
    torch.save(np.zeros(4), tmp_path / "flat")
    torch.save(np.full((2, 3), np.nan), tmp_path / "nan")
    torch.save(np.array([["a"]], dtype=object), tmp_path / "objects")
    torch.save({"states": good}, tmp_path / "dict")
    names = ("hostile", "pickle", "short", "empty", "flat", "nan", "objects", "dict", "absent")
    for name in names:
        with pytest.raises(UserError, match="expected arrays of initial states") as error:
            read_states(tmp_path / name)
        assert "\n" not in str(error.value), name
    assert not trap.exists()
