import errno
import io
import os
import signal
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pytest
import tyro

import lawm_policy
from lawm_policy import cli
from lawm_policy.stages.arguments import ARGUMENTS
from lawm_policy.types import UserError

REPOSITORY = Path(lawm_policy.__file__).parents[1]


@dataclass(frozen=True)
class FakeArgs:
    """Does something."""

    config: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CONFIG")]
    """The recipe."""
    data: tuple[Path, ...]
    """Stores."""
    steps: int = 3
    rate: float = 0.5
    demos: int | None = None
    share: float | None = None
    mode: Literal["all", "head"] = "all"
    resume: bool = False
    overrides: tyro.conf.Suppress[tuple[tuple[str, str], ...]] = ()


@dataclass(frozen=True)
class PlainArgs:
    """Takes no configuration."""

    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"expected size >= 1, found {self.size}")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments that the verbs `fake` and `plain` were called with."""
    seen: list[Any] = []

    def run(args: FakeArgs) -> int | None:
        seen.append(args)
        return None

    def run_plain(args: PlainArgs) -> int | None:
        seen.append(args)
        return 7

    for name, function in (("fake", run), ("plain", run_plain)):
        module = types.ModuleType(f"lawm_policy.stages.{name}")
        module.run = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.VERBS, name, (name, "for tests"))
    return seen


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(args: PlainArgs) -> None:
        raise error

    monkeypatch.setattr(sys.modules["lawm_policy.stages.plain"], "run", run)


def test_parses_and_calls_one_stage(calls: list[Any]) -> None:
    argv = ["fake", "lawm", "--data", "a", "b", "--steps", "5", "--demos", "4", "--resume", "--mode", "head"]
    assert cli.main(argv) == 0
    assert calls == [FakeArgs("lawm", (Path("a"), Path("b")), 5, demos=4, resume=True, mode="head")]
    assert cli.main(["plain"]) == 7


def test_overrides_in_every_spelling(calls: list[Any]) -> None:
    text = "fake lawm --set a=1 b.c=x=y --data d --train.lr 3e-4 --x.y=2 --z.w -1 --set q.r=[1,2] --steps 4"
    assert cli.main(text.split()) == 0
    pairs = [("a", "1"), ("b.c", "x=y"), ("train.lr", "3e-4"), ("x.y", "2"), ("z.w", "-1"), ("q.r", "[1,2]")]
    assert calls[0].overrides == tuple(pairs)
    assert (calls[0].data, calls[0].steps) == ((Path("d"),), 4)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("fake", "expected CONFIG and --data [PATH [PATH ...]], found nothing for them"),
        ("fake lawm", "expected --data [PATH [PATH ...]], found nothing for it"),
        ("fake lawm --dat x", "expected a known option, found --dat: did you mean '--data'?"),
        (
            "fake lawm --data x --zzzzzz 1",
            "expected a known option, found --zzzzzz: choose one of --config, --data",
        ),
        ("fake lawm --data x --steps many", "expected a whole number for --steps, found 'many'"),
        ("fake lawm --data x --rate fast", "expected a number for --rate, found 'fast'"),
        ("fake lawm --data x --demos few", "expected a whole number for --demos, found 'few'"),
        ("fake lawm --data x --share much", "expected a number for --share, found 'much'"),
        ("fake lawm --data x --mode top", "expected a known --mode, found 'top': choose one of all, head"),
        ("fake lawm --data x --mode heed", "expected a known --mode, found 'heed': did you mean 'head'?"),
        ("collect tabeltop --out x", "expected a known suite, found 'tabeltop': did you mean 'tabletop'?"),
        ("fake lawm --data x --steps", "expected a value after --steps, found none"),
        ("fake lawm --data x --steps 3 more", "expected no more arguments, found more"),
        ("fake lawm --data x --train.lr", "expected a value after --train.lr, found none"),
        ("fake lawm --data x --set lr", "expected key=value after --set, found 'lr'"),
        ("fake lawm --data x --set", "expected key=value after --set, found nothing"),
        ("plain --size.x 1", "expected a known option, found --size.x: did you mean '--size'?"),
        ("plain --size 0", "expected size >= 1, found 0"),
        ("plian", "expected a verb, found 'plian': did you mean 'plain'?"),
        ("--verbose", "expected a verb, found '--verbose'"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    calls: list[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: str,
    said: str,
    encoding: str,
) -> None:
    # The parser draws its frames as the terminal's encoding allows.
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", shown)
    assert cli.main(argv.split()) == 2
    err = capsys.readouterr().err
    assert shown.tell() == 0 and calls == []
    assert err.count("\n") == 1 and err.startswith("lawm")
    assert said in err


def test_user_error_is_one_line(
    calls: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, UserError("expected a store,\n  found soup: import it"))
    assert cli.main(["plain"]) == 2
    assert capsys.readouterr().err == "lawm plain: expected a store, found soup: import it\n"


def test_full_disk_is_one_line(
    calls: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "/somewhere/file"))
    assert cli.main(["plain"]) == 2
    assert capsys.readouterr().err == (
        "lawm plain: expected room on the disk for /somewhere/file, found none: free some and run again\n"
    )


@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), OSError(errno.EIO, "Input/output error"), ValueError("x")]
)
def test_a_fault_shows_its_traceback(
    calls: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    raising(monkeypatch, error)
    assert cli.main(["plain"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interruption_is_one_line(
    calls: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    assert cli.main(["plain"]) == 130
    assert capsys.readouterr().err == "lawm plain: interrupted\n"


def test_help_is_scoped(calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in cli.VERBS)
    assert cli.main(["fake", "--help"]) == 0
    out = capsys.readouterr().out
    assert "lawm fake" in out and "Does something." in out and "--set a.b=value" in out and "CONFIG" in out
    assert cli.main(["plain", "--help"]) == 0
    assert "--set" not in capsys.readouterr().out
    assert calls == []
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lawm-policy {lawm_policy.__version__}\n"


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_has_a_stage_that_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: lawm {verb}" in out
    assert "None" not in out  # an option that may be left out says what happens then


def test_descriptions_are_filled(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    assert cli.main(["import", "--help"]) == 0
    shown = capsys.readouterr().out
    described = shown[: shown.index("positional arguments")]
    assert "\n\nlibero: LIBERO's HDF5" in described and "\n\n\n" not in described
    assert all(len(line) <= 70 for line in described.splitlines())


# In a process of its own -----------------------------------------------------------------------


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # fmt: off
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, cwd=REPOSITORY,
        env={**os.environ, **environment},
    )
    # fmt: on


def test_import_and_help_leave_torch_alone() -> None:
    for command in ("import lawm_policy", "from lawm_policy.cli import main; main(['--help'])"):
        done = python(
            "-c", f"import sys; {command}; assert 'torch' not in sys.modules and 'mujoco' not in sys.modules"
        )
        assert done.returncode == 0, done.stderr


def test_no_verb_needs_torch_to_explain_itself_or_to_see_a_mistake() -> None:
    said = "; ".join(
        f"assert main({argv!r}) == {status}"
        for verb in cli.VERBS
        for argv, status in (([verb, "--help"], 0), ([verb, "--no-such-option"], 2))
    )
    done = python(
        "-c", f"import sys; from lawm_policy.cli import main; {said}; assert 'torch' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", list(ARGUMENTS))
def test_arguments_kept_apart_are_those_of_the_stage(verb: str) -> None:
    assert get_type_hints(cli._find(verb))["args"] is ARGUMENTS[verb]


@pytest.mark.parametrize(("verb", "limit"), [("", 0.5), ("pretrain", 0.7), ("finetune", 0.7)])
def test_help_is_fast(verb: str, limit: float) -> None:
    def seconds() -> float:
        """Of processor time: what a loaded machine's clock says is not ours."""
        before = os.times()
        assert python("-m", "lawm_policy", *verb.split(), "--help").returncode == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(3)) < limit


def test_public_names_are_all_there() -> None:
    assert len(lawm_policy.__all__) <= 16
    for name in lawm_policy.__all__:
        assert getattr(lawm_policy, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lawm_policy.nothing  # type: ignore[attr-defined]


def test_another_package_adds_a_verb(tmp_path: Path) -> None:
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lawm_policy.verbs]\ndance = other_package:run\n")
    (tmp_path / "other_package.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass Args:\n    turns: int = 1\n"
        "def run(args: Args) -> int:\n    print('turns', args.turns)\n    return 5\n"
    )
    done = python("-m", "lawm_policy", "dance", "--turns", "3", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (5, "turns 3\n"), done.stderr
    assert "from other_package" in python("-m", "lawm_policy", "--help", PYTHONPATH=str(tmp_path)).stdout


def test_a_closed_pipe_is_no_fault(tmp_path: Path) -> None:
    command = f"{sys.executable} -m lawm_policy --help | head -c 10"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert done.stdout == "usage: law" and "Traceback" not in done.stderr


def test_control_c_exits_130(tmp_path: Path) -> None:
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lawm_policy.verbs]\nwait = other_package:run\n")
    (tmp_path / "other_package.py").write_text(
        "import time\nfrom dataclasses import dataclass\n@dataclass\nclass Args:\n    n: int = 1\n"
        "def run(args: Args) -> None:\n    print('ready', flush=True)\n    time.sleep(30)\n"
    )
    # fmt: off
    child = subprocess.Popen(
        [sys.executable, "-m", "lawm_policy", "wait"], cwd=REPOSITORY, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        # a shell that runs the tests in its background has them ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # fmt: on
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (130, "lawm wait: interrupted\n")
