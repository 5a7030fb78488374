"""What a stage would make of records: functions that worker processes can import."""

import numpy as np


def caption_lengths(step, indices, records, size, factor=1):
    """The lengths of captions, times a factor; nothing under another name."""
    values = [factor * len(record.captions["zh"]) for record in records]
    return {"lengths": np.array(values), "none": None, "steps": np.full(len(indices), step)}
