"""`python -m ppvilg COMMAND ...`, the same as `ppvilg COMMAND ...`."""

import sys

from ppvilg.commands import main

if __name__ == "__main__":
    sys.exit(main())
