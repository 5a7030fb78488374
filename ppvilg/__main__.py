"""`python -m ppvilg COMMAND ...`, the same as `ppvilg COMMAND ...`."""

from ppvilg.commands import start

if __name__ == "__main__":
    start()
