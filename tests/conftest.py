"""What all tests share. Markers (`slow`, `acceptance`, `libero`) are declared in pyproject.toml."""

import functools
import os

import pytest

# One thread a process: tests run side by side, and their numbers must not depend on the machine's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_runtest_setup(item):
    """Without LIBERO, tests marked `libero` are listed as skipped; with LAWM_REQUIRE_LIBERO they fail."""
    if item.get_closest_marker("libero") and (lack := lack_of_libero()):
        if os.environ.get("LAWM_REQUIRE_LIBERO"):
            pytest.fail(f"LAWM_REQUIRE_LIBERO is set, but {lack}", pytrace=False)
        pytest.skip(lack)


@functools.cache
def lack_of_libero():
    """One line on what keeps LIBERO from running here, or "". Looks, and does not import it."""
    from lawm_policy.sim import libero_assets
    from lawm_policy.types import UserError

    try:
        libero_assets.check_ready()
    except UserError as error:
        return str(error)
    return ""
