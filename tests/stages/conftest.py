import pytest
from evaluations import arguments

from lawm_policy.stages import evaluate


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One evaluation in this process, for others to equal."""
    out = tmp_path_factory.mktemp("whole") / "eval"
    assert evaluate.run(arguments(out, workers=0, episodes=6)) == 0
    return out
