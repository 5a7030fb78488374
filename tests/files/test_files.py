"""Files appear whole or not at all; texts and damage are named."""

import hashlib
import os

import pytest

from ppvilg.files import damage_of, digest_of, file_sha256, read_lines, read_text, whole_file, write_whole


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "old")
    with pytest.raises(RuntimeError), whole_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    write_whole(path, b"new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_name_that_is_taken(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "mine", replace=False)
    with pytest.raises(FileExistsError, match="a.txt is there already"):
        write_whole(path, "other", replace=False)
    other = tmp_path / "b.txt"
    with pytest.raises(FileExistsError), whole_file(other, replace=False) as partial:
        partial.write_text("late")
        other.write_text("first")  # somebody took the name meanwhile
    assert path.read_text() == "mine" and other.read_text() == "first"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt"]


def test_what_the_system_refuses_is_named_by_the_file_that_was_to_be(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.png"
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(tmp_path / "none" / "a.png", b"x")
    assert caught.value.filename == str(tmp_path / "none" / "a.png")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: '.*/a.png'"):
        write_whole(path, b"x")
    assert os.listdir(tmp_path) == []
    with pytest.raises(OSError, match="other.txt"), whole_file(path):
        raise FileNotFoundError(2, "No such file", "other.txt")  # another file's error stays its own


def test_hashes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 3_000_000)
    assert file_sha256(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1}) != digest_of({"a": 1, "b": [3]})


def test_texts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff 一只猫 \r\n\n狗\n".encode())
    assert read_lines(path) == ["一只猫", "狗"]
    for data, message in [("一只猫在草地上".encode("gbk"), "not UTF-8"), ("猫".encode("utf-16"), "UTF-16")]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"prompts.txt.*{message}|{message}"):
            read_text(path)
    with pytest.raises(FileNotFoundError, match="none.txt"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_text(tmp_path)
    with pytest.raises(ValueError, match="more than 3 bytes"):
        read_text(path, limit=3)


def test_damage(tmp_path):
    path = tmp_path / "model.safetensors"
    assert "is missing" in damage_of(path)
    pointer = b"version https://git-lfs.github.com/spec/v1"
    for data, message in [(b"", "is empty"), (b"abc", "cut off"), (pointer, "git lfs")]:
        path.write_bytes(data)
        assert message in damage_of(path) and str(path) in damage_of(path)
