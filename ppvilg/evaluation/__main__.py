"""`python -m ppvilg.evaluation ...`, the same as `ppvilg evaluate ...`."""

from ppvilg.commands import start

if __name__ == "__main__":
    start("evaluate")
