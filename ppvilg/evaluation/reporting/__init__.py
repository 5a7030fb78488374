"""How results are written down: the protocol of a run, a single-file page, sheets of pictures."""
