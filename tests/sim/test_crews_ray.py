"""The same jobs, questions and episodes on a Ray cluster of two nodes, one of which goes away."""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lawm_policy.sim import protocol
from lawm_policy.sim.crews_ray import FAILED_TO_START, ray_crew
from lawm_policy.sim.workers import run_jobs
from lawm_policy.stages import evaluate
from lawm_policy.types import UserError

TESTS = Path(__file__).parents[1]


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Node:
    """One core of this machine, as a node of a cluster."""

    def __init__(self, *arguments):
        paths = [str(TESTS), str(TESTS.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "RAY_USAGE_STATS_ENABLED": "0"}
        environment["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # else servers die now and then as they are forked
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1",
             "--disable-usage-stats", "--object-store-memory", str(80 * 2**20),
             "--node-ip-address", "127.0.0.1", *arguments],
            env=environment, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def kill(self):
        """With all that it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, behind the port of Ray's client."""
    if importlib.util.find_spec("ray") is None:
        if os.environ.get("LAWM_REQUIRE_RAY"):
            pytest.fail("LAWM_REQUIRE_RAY is set, but Ray is not installed", pytrace=False)
        pytest.skip('Ray is not installed: `make setup EXTRAS="ray"`')
    port, client = free_ports(2)
    head = ("--head", f"--port={port}", f"--ray-client-server-port={client}", "--include-dashboard=false")
    nodes = [Node(*head)]
    try:
        wait_for_port(client)
        nodes.append(Node(f"--address=127.0.0.1:{port}"))
        found = SimpleNamespace(url=f"ray://127.0.0.1:{client}", second=nodes[1])
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with ray_crew(found.url) as crew:
                if crew.size(99) == 2:
                    break
            time.sleep(1)
        yield found
    finally:
        for node in reversed(nodes):
            node.kill()


def wait_for_port(port, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError(f"nothing answers on port {port}")


@pytest.mark.slow
def test_a_cluster_does_the_same_jobs(cluster, tmp_path, monkeypatch):
    """Paths are relative to where we are, not to where a node was started."""
    monkeypatch.chdir(tmp_path)
    jobs = [1, 2, -1, 1000, 3000, 3, 4]
    outcomes = run_jobs("fake_suite:squares", {"log": "log"}, jobs, workers=cluster.url)
    found = {jobs[o.index]: o for o in outcomes}
    assert len(found) == len(jobs) and (tmp_path / "log").exists()
    assert [found[x].result for x in (1, 2, 3, 4, 3000)] == [1, 4, 9, 16, 9_000_000]
    assert found[-1].error.startswith("ValueError: negative -1 (fake_suite.py:")
    assert found[1000].error == "worker died with ActorDiedError on the cluster, 2 times"
    with pytest.raises(UserError, match="expected a run, found none"):
        list(run_jobs("fake_suite:mistaken", {}, [1], workers=cluster.url))
    answer = {"answer": lambda questions: [q + 1 for q in questions], "workers": cluster.url}
    asked = {o.index: o.result for o in run_jobs("fake_suite:asking", {}, [1, 2, 3], **answer)}
    assert asked == {0: 0, 1: -3, 2: -8}


@pytest.mark.slow
def test_a_server_that_ray_failed_to_start_is_asked_for_again(cluster, monkeypatch):
    import ray  # the fixture has seen that it is there

    connect, calls = ray.init, []

    def fail_once(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise ConnectionAbortedError(f"RuntimeError: {FAILED_TO_START}. See ray_client_server_23001.err")
        return connect(*arguments, **options)

    monkeypatch.setattr(ray, "init", fail_once)
    with ray_crew(cluster.url) as crew:
        assert crew.size(99) == 2 and len(calls) == 2
    calls.clear()
    monkeypatch.setattr("lawm_policy.sim.crews_ray.TRIES", 1)
    with pytest.raises(UserError, match="expected a Ray cluster at ray://"), ray_crew(cluster.url):
        pass
    assert len(calls) == 1


@pytest.mark.slow
def test_an_evaluation_survives_the_loss_of_a_node(cluster, tmp_path):
    """Episodes equal those of this machine, also those that were under way on the node that went."""
    here = evaluate.EvaluateArgs(
        "", tmp_path / "here", "fake_suite:suite", episodes=4, workers=0, policy_factory="fake_suite:slow"
    )
    assert evaluate.run(here) == 0
    with ray_crew(cluster.url) as crew:
        assert crew.size(99) == 2
    there = replace(here, out=tmp_path / "there", workers=cluster.url)
    append, seen = protocol.append, []

    def append_and_cut(descriptor, record):
        append(descriptor, record)
        seen.append(record)
        if len(seen) == 3:
            cluster.second.kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "append", append_and_cut)
        assert evaluate.run(there) == 0
    a, b = ({r.episode: (r.success, r.steps) for r in protocol.read(args.out)} for args in (here, there))
    assert a == b and len(seen) == 12


def test_an_address_that_is_none_is_one_line():
    for address in ("two", "ray:/here", "ray://here?workers=0", "grpc://here"):
        with pytest.raises(UserError, match=r"expected --workers as a number or ray://HOST:PORT"):
            list(run_jobs("fake_suite:squares", {}, [1], workers=address))
