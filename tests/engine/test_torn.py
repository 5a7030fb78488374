"""Files of a run's output that were cut off, by a copy or a crash of the machine: named, and made again."""

from __future__ import annotations

import logging
import shutil

CUT = ("cache/**/*.npy", "cache/tags_*.sqlite", "tokenizer/vocab.txt", "base/unet/**/*.safetensors",
       "experts/model_index.json", "checkpoints/experts/*/*.safetensors")  # fmt: skip


def test_whatever_was_cut_off_is_named_and_made_again(make_run, finished, tmp_path, caplog):
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    make_run(output, "data.cache_tags=true").run()
    cut = [sorted(output.glob(pattern))[-1] for pattern in CUT if any(output.glob(pattern))]
    assert len(cut) >= 4
    sizes = {path: path.stat().st_size for path in cut}
    for path, size in sizes.items():
        path.write_bytes(path.read_bytes()[: size // 2])
    caplog.set_level(logging.WARNING)
    caplog.clear()
    make_run(output, "data.cache_tags=true").run()
    said = " ".join(record.getMessage() for record in caplog.records)
    for path, size in sizes.items():
        assert path.name in said or path.parent.name in said or path.stat().st_size == size, f"{path} in silence"
