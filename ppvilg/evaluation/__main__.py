"""`python -m ppvilg.evaluation ...`, the same as `ppvilg evaluate ...`."""

import sys

from ppvilg.commands import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
