"""What all tests share. Markers (`slow`, `acceptance`) are declared in pyproject.toml."""

import os

# One thread a process: tests run side by side, and their numbers must not depend on the machine's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
