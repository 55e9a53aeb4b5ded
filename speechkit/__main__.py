"""``python -m speechkit``: the same as the ``speechkit`` command."""

import sys

from speechkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
