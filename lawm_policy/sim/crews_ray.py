"""Workers on a Ray cluster: the same desk, in an actor that takes one core of whichever node has one free."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from lawm_policy.sim.crews import Desk, Lost, Message, Worker, open_desk
from lawm_policy.types import UserError

ADDRESS = re.compile(r"(ray://[^?]+)(?:\?workers=([1-9]\d*))?")
PASSED_ON = ("LAWM_", "MUJOCO_GL", "PYOPENGL_PLATFORM")  # variables that nodes get from who asks
TRIES = 3
FAILED_TO_START = "Starting Ray client server failed"  # forked beside gRPC's threads, it dies now and then


class RayDesk:
    """The body of an actor."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        os.environ.update(variables)
        self._desk: Desk | None = None

    def begin(self, folder: str, setup: str, arguments: Mapping[str, Any]) -> Message:
        try:
            os.chdir(folder)  # what paths are relative to; Ray's own is where a node was started
        except OSError:
            return "mistake", f"expected {folder} on every node, found none on one: share that file system"
        self._desk, first = open_desk(setup, arguments)
        return first

    def tell(self, message: Message) -> Message:
        assert self._desk is not None
        return self._desk.tell(message)


class RayWorker(Worker):
    def __init__(self, ray: Any, setup: str, arguments: Mapping[str, Any], setup_seconds: float) -> None:
        super().__init__(setup_seconds)
        self._ray = ray
        variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        self._actor = ray.remote(num_cpus=1, max_restarts=0)(RayDesk).remote(variables)
        self.says = self._actor.begin.remote(os.getcwd(), setup, dict(arguments))

    def tell(self, message: Message) -> None:
        self.says = self._actor.tell.remote(message)

    def hear(self) -> Message:
        try:
            message: Message = self._ray.get(self.says)
        except self._ray.exceptions.RayError as error:
            raise Lost(f"{type(error).__name__} on the cluster") from None
        self.says = None
        return message

    def end(self) -> str:
        self._ray.kill(self._actor)
        return "its actor"


class RayCrew:
    def __init__(self, ray: Any, workers: int) -> None:
        self._ray, self._workers = ray, workers

    def size(self, jobs: int) -> int:
        return min(self._workers, jobs)

    def hire(self, setup: str, arguments: Mapping[str, Any], setup_seconds: float) -> Worker:
        return RayWorker(self._ray, setup, arguments, setup_seconds)

    def speaking(self, workers: Sequence[Any], timeout: float) -> list[Worker]:
        saying = [worker.says for worker in workers if worker.says is not None]
        if saying and self._ray.wait(saying, timeout=timeout)[0]:
            ready, _ = self._ray.wait(saying, num_returns=len(saying), timeout=0)
            return [worker for worker in workers if worker.says in ready]
        return []


def cluster(address: str) -> tuple[str, str | None]:
    """Where it is, and how many workers it is asked for; refuses what cannot be one, and missing Ray."""
    found = ADDRESS.fullmatch(address)
    if not found:
        raise UserError(
            f"expected --workers as a number or ray://HOST:PORT[?workers=N], found {address!r}: correct it"
        )
    if find_spec("ray") is None:
        raise UserError(f'expected Ray for --workers {address}, found none: `make setup EXTRAS="ray"`')
    return found[1], found[2]


@contextlib.contextmanager
def ray_crew(address: str) -> Iterator[RayCrew]:
    """ "ray://HOST:PORT" has as many workers as the cluster has cores now; or append "?workers=N"."""
    place, workers = cluster(address)
    import ray

    for attempt in range(1, TRIES + 1):
        try:
            ray.init(place, logging_level=logging.ERROR, log_to_driver=False)
            break
        except (ConnectionError, RuntimeError, ValueError) as error:
            if FAILED_TO_START in str(error) and attempt < TRIES:
                continue
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"expected a Ray cluster at {place}, found none ({reason}): `ray status`"
            ) from error
    try:
        yield RayCrew(ray, int(workers or ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()
