"""Every bad request is answered by one line and exit status 2, and changes nothing."""

import sys
from pathlib import Path

import pytest

from benchmarks.fault_cases import BAD_REQUESTS, Case, Material, build, fingerprint
from lawm_policy import cli

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    root = tmp_path_factory.mktemp("material")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAWM_CACHE", str(root / "cache"))
        return build(root / "material", cli.main, steps=2)


@pytest.mark.parametrize("case", BAD_REQUESTS, ids=lambda case: f"{case.command.split()[0]}: {case.name}")
def test_refused(
    case: Case,
    material: Material,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAWM_CACHE", str(tmp_path.parent / "cache"))
    for key, value in case.environment:
        monkeypatch.setenv(key, value.format(fresh=tmp_path.parent / "fresh-cache"))
    argv = material.argv(case.command, tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["lawm", *argv])
    before = fingerprint(material.root)
    capsys.readouterr()
    status = cli.main(argv)
    err = capsys.readouterr().err
    assert status == 2, err
    assert err.count("\n") == 1 and err.startswith("lawm"), err
    assert case.said in err
    assert not list(tmp_path.iterdir())
    assert fingerprint(material.root) == before
