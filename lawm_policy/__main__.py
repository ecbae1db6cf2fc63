"""`python -m lawm_policy VERB ...` is `lawm VERB ...`."""

import sys

from lawm_policy.cli import main

if __name__ == "__main__":
    sys.exit(main())
