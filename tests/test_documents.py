"""What the documents say is true: their commands parse, their links lead somewhere, their Python runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from lawm_policy import checkpoint, cli, config
from lawm_policy.data.normalize import Normalization
from lawm_policy.policies.latent_policy import LatentPolicy, LatentPolicyConfig
from lawm_policy.types import UserError

ROOT = Path(__file__).parents[1]


def commands(document):
    """Every `lawm ...` line of the document's shell blocks."""
    text = (ROOT / document).read_text()
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if re.match(r"\s*(\.venv/bin/)?lawm\s", line)]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/libero.md", "docs/scale.md"])
def test_every_command_in_the_documents_is_understood(document):
    found = commands(document)
    assert found
    for _, verb, *arguments in found:
        args_class = cli._arguments_of(verb)
        cli.parse(args_class, arguments, prog=f"lawm {verb}")


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", "docs/libero.md", "docs/scale.md", "benchmarks/README.md"]
)
def test_every_file_that_a_document_names_is_there(document):
    text = (ROOT / document).read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    base = (ROOT / document).parent
    missing = [link for link in links if not (base / link).exists()]
    assert not missing, f"{document} links to {missing}"


def test_every_benchmark_is_listed():
    table = (ROOT / "benchmarks/README.md").read_text()
    listed = set(re.findall(r"^\| `(\w+\.py)`", table, re.MULTILINE))
    texts = {p.name: p.read_text() for p in (ROOT / "benchmarks").glob("*.py")}
    asks = re.compile(r"^ +(write_result|run_trials|table)\(", re.MULTILINE)
    runnable = {name for name, text in texts.items() if '"__main__"' in text and asks.search(text)}
    assert runnable == listed


def test_every_benchmark_answers_a_mistake_as_the_others_do():
    texts = {p.name: p.read_text() for p in (ROOT / "benchmarks").glob("*.py")}
    unlike = {name for name, text in texts.items() if re.search(r"argparse|tyro\.cli\(", text)}
    unlike |= {name for name, text in texts.items() if re.search(r"^def main\(", text, re.MULTILINE)} - {
        name for name, text in texts.items() if "    answer(main, Args)\n" in text
    }
    assert not unlike
    done = run_table("--bogus")
    assert done.returncode == 2
    assert done.stderr == "table: expected a known option, found --bogus: choose one of --check\n"


def run_table(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks/table.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_tables_are_those_of_the_committed_results():
    done = run_table("--check")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}: make benchmarks"


def test_a_missed_target_is_printed_as_missed():
    import table

    target = {"name": "t", "goal": ">= 3", "value": 2.0, "interval": [1.0, 2.5], "met": False}
    common = {"says": "words", "seeds": 3, "minus_scratch": None, "minus_scratch_interval": None}
    gain = {"minus_scratch": 20.0, "minus_scratch_interval": [-1.0, 41.0]}
    rows = [
        common | {"arm": "scratch", "n": 10, "mean": 40.0, "interval": [30.0, 50.0]},
        common | {"arm": "best", "n": 10, "mean": 60.0, "interval": None} | gain,
        common | {"arm": "best", "n": 30, "mean": 90.0, "interval": None},
        {"arm": "later", "n": 10, "seeds": 0, "says": "not run"},
    ]
    result = {"question": "q?", "targets": [target], "rows": rows, "versions": {"commit": "abc"}}
    result |= {"hardware": {"cpu": "a processor"}}
    results = {"label_efficiency": result}
    assert "| t | >= 3 | 2 (1 to 2.5) | **missed** |" in table.targets(results, "results")
    assert "| q? | t: 2 (1 to 2.5), goal >= 3 | 0 of 1 | a processor |" in table.summary(results, "results")
    found = table.label_efficiency(results)
    assert "| scratch: words | 40.0% (30.0 to 50.0), 3 seeds |  |  |" in found
    assert "| best: words | 60.0%, 3 seeds | 90.0%, 3 seeds | +20.0 (-1.0 to 41.0) |" in found
    assert "later" not in found
    said = table.tally(results)
    assert said.startswith("0 of 1 targets") and said.endswith("were met. Missed: label_efficiency: t.")
    result["targets"].append({**target, "met": None})
    assert table.tally(results).endswith("label_efficiency: t. Not measured yet: 1 of label_efficiency.")
    result["versions"] = {"commit": "abc+"}
    assert table.tally(results).endswith("Measured on code before it was committed: label_efficiency.")


def test_the_liberos_table_has_a_line_a_cell_and_a_column_an_arm():
    import table

    common = {"suite": "libero_goal", "n": 5, "start": "wide", "verdict": "blind 30.0 points below the best"}
    common |= {"made with": "mujoco 3", "seeds": 5, "interval": [30.0, 50.0]}
    gain = {"minus_scratch": 20.0, "minus_scratch_interval": [11.0, 31.0]}
    rows = [
        common | {"arm": "scratch", "mean": 40.0, "minus_scratch": None},
        common | {"arm": "inverse-kl", "mean": 60.0} | gain,
        common | {"arm": "scratch", "mean": 90.0, "n": 50, "seeds": 1},
        {key: common[key] for key in ("suite", "n", "start", "verdict")} | {"arm": "blind"},
    ]
    head, _, first, second = table.libero(rows).splitlines()
    assert head.endswith(
        "`lawm+lite`, mujoco 3 | scratch | inverse-kl | gain over scratch | does it show anything |"
    )
    assert first == (
        "| libero_goal, n = 5, wide starts | 40.0% (30.0 to 50.0), 5 seeds | 60.0% (30.0 to 50.0), 5 seeds | "
        "inverse-kl +20.0 (11.0 to 31.0) | blind 30.0 points below the best |"
    )
    assert "| libero_goal, n = 50, wide starts | 90.0% (30.0 to 50.0), 1 seed | not run |  |" in second
    assert table.libero(rows[-1:]) == "", "nothing is measured"


def test_a_quick_run_is_no_result(tmp_path):
    import table

    (tmp_path / "faults").mkdir()
    (tmp_path / "faults/result.json").write_text('{"command": "python benchmarks/faults.py --quick"}')
    with pytest.raises(UserError, match=r"expected a whole run in .*faults, found one with --quick"):
        table.read_results(tmp_path)


def save_policy(folder):
    """A fine-tuned checkpoint of a toy policy: 3 numbers of state, 2 commands."""
    cfg = LatentPolicyConfig(policy=tiny.POLICY)
    zero, one = (0.0,) * 3, (1.0,) * 3
    normalization = Normalization(
        zero, one, zero, one, zero[:2], one[:2], zero[:2], one[:2], relative_to=(None, None)
    )
    robot = {"state_names": ["a", "b", "c"], "action_names": ["a", "b"], "relative_to": [None, None]}
    meta = {
        "kind": "finetuned",
        "config": {"policy": config.to_dict(cfg)},
        "normalization": normalization.to_json(),
        "robot": robot,
    }
    policy = LatentPolicy(cfg, normalization, robot)
    checkpoint.save(folder, {"model": policy.state_dict()}, meta, card="toy")


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert len(code.splitlines()) <= 5
    save_policy(tmp_path / "runs/finetuned/checkpoints/last")
    monkeypatch.chdir(tmp_path)
    picture = np.zeros((tiny.POLICY.size, tiny.POLICY.size, 3), np.uint8)
    names = {"front": picture, "wrist": picture, "state": np.zeros(3, np.float32)}
    exec(code, names)
    assert names["commands"].shape[1] == 2 and names["commands"].dtype == np.float32
    assert 0 < names["policy"].execute <= len(names["commands"])
