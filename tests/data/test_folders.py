"""Folders with a listing: names as people and other systems write them; files that are no data, each in a sentence."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from ppvilg.data import open_source
from tests.data.test_records import encode, samples, write_tar

ROOT = Path(__file__).resolve().parents[2]
NFC, NFD = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))


def put(folder, name, data=None) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode() if data is None else data)


def list_in(folder, *lines, encoding="utf-8", end="\n") -> None:
    rows = [{"file_name": line, "caption": "一只猫坐在桌子上"} if isinstance(line, str) else line for line in lines]
    text = "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)
    (folder / "metadata.jsonl").write_bytes(text.encode(encoding))


@pytest.mark.parametrize(
    "stored, named, key",
    [
        ("a/1.png", "./a/1.png", "a/1"),
        ("a/1.png", "a\\1.png", "a/1"),
        ("a/1.png", "{folder}/a/1.png", "a/1"),
        ("a/1.png", "a//b/../1.png", "a/1"),
        (NFD, NFC, NFD[:-4]),
        (NFC, NFD, NFC[:-4]),
        (f"{NFD[:-4]}/x.jpg", f"{NFC[:-4]}/x.jpg", f"{NFD[:-4]}/x"),
        ("a/1.JPG", "a/1.jpg", "a/1"),
        ("a/1.png", "a/1.PNG", "a/1"),
        ("a/IMG_1.JPG", "A/img_1.jpg", "a/IMG_1"),  # of a system that does not tell them apart
        ("a/1.bin", "a/1.bin", "a/1"),  # what it is decides its content
        ("a/1.gif", "a/1.gif", "a/1"),
    ],
)
def test_a_name_is_found_however_it_is_written(tmp_path, stored, named, key):
    put(tmp_path, stored)
    list_in(tmp_path, named.format(folder=tmp_path))
    source = open_source(tmp_path)
    assert source.keys == [key] and source.bad == [] and source.read(0).image.size == (16, 8)


def test_names_that_differ_by_case_alone_are_not_guessed(tmp_path):
    for name in ("ab.png", "AB.png"):
        put(tmp_path, name)
    list_in(tmp_path, "AB.png", "aB.png")
    source = open_source(tmp_path)
    assert source.keys == ["AB"] and "several pictures: AB.png, ab.png" in source.bad[0].reason


def test_the_file_of_exactly_that_name_comes_first(tmp_path):
    for number, name in enumerate(("a.png", "a.PNG", NFC, NFD)):
        put(tmp_path, name, encode((number, 0, 0)))
    list_in(tmp_path, NFD, "a.PNG", "a.Png")
    source = open_source(tmp_path)
    assert [source.read(i).image.getpixel((0, 0))[0] for i in range(2)] == [3, 1]
    assert [problem.reason for problem in source.bad] == ["several pictures: a.PNG, a.png; use file_name"]


def test_linked_folders_are_followed_once(tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    put(elsewhere, "in/1.png")
    put(data, "real/2.png")
    (data / "link").symlink_to(elsewhere)
    (elsewhere / "in" / "loop").symlink_to(elsewhere)
    (data / "alias").symlink_to(data / "real")
    (data / "gone.png").symlink_to(data / "nowhere.png")
    list_in(data, "link/in/1.png", "alias/2.png", "gone.png")
    source = open_source(data)
    assert source.keys == ["link/in/1", "real/2"]
    assert [problem.reason for problem in source.bad] == ["image is missing: 'gone.png'"]
    assert source.index.manifest["unlisted"] == 0
    assert open_source(data).index.manifest["changed"] == []


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("field", ["file_name", "key"])
def test_a_picture_of_another_kind_is_not_said_to_be_missing(tmp_path, kind, field):
    put(tmp_path, f"1.{kind.lower()}", encode(Image.new("RGB", (8, 8)), kind=kind))
    put(tmp_path, "2.png")
    list_in(tmp_path, {field: "1" if field == "key" else f"1.{kind.lower()}", "caption": "猫"}, "2.png")
    source = open_source(tmp_path)
    (problem,) = source.bad
    assert source.keys == ["2"] and "not a picture of a supported type (JPEG, PNG, WEBP)" in problem.reason
    assert problem.key == "1" and problem.source.endswith("metadata.jsonl:1") or problem.source.endswith(kind.lower())
    assert (f"it is a {kind}" in problem.reason) == (kind != "PPM")


def test_pictures_of_other_kinds_in_shards(tmp_path):
    members = [("1.gif", encode(Image.new("RGB", (8, 8)), kind="GIF")), ("2.jfif", encode(kind="JPEG")),
               ("3.png", encode(kind="WEBP")), *((f"{i}.txt", "猫") for i in range(1, 4))]  # fmt: skip
    source = open_source(write_tar(tmp_path / "0.tar", members))
    assert source.keys == ["2", "3"] and "it is a GIF" in source.bad[0].reason
    assert source.read(0).image.size == source.read(1).image.size == (16, 8)


def test_nothing_outside_the_folder_is_read(tmp_path):
    put(tmp_path, "secret.png")
    put(tmp_path, "data/1.png")
    list_in(tmp_path / "data", "../secret.png", str(tmp_path / "secret.png"), "1.png", "1\0.png")
    source = open_source(tmp_path / "data")
    assert source.keys == ["1"] and len(source.bad) == 3
    assert all("image is missing" in problem.reason for problem in source.bad)


# ---- texts


@pytest.mark.parametrize("encoding, end", [("utf-8-sig", "\n"), ("utf-8", "\r\n"), ("utf-8-sig", "\r\n")])
def test_listings_of_other_systems(tmp_path, encoding, end):
    put(tmp_path, "1.png")
    list_in(tmp_path, "1.png", encoding=encoding, end=end)
    assert open_source(tmp_path).read_text(0).captions == {"zh": "一只猫坐在桌子上"}
    write_tar(tmp_path / "0.tar", samples(1))
    text = json.dumps({"tool": "t", "version": "1"}) + end + json.dumps({"key": "00000", "captions": {"en": "x"}}) + end
    (tmp_path / "annotations.jsonl").write_bytes(text.encode(encoding))
    assert open_source(tmp_path).read_text(0).captions["en"] == "x"


@pytest.mark.parametrize(
    "encoding, reason",
    [("utf-16", "is UTF-16"), ("utf-16-le", "is UTF-16"), ("utf-32", "is UTF-16 or UTF-32"),
     ("gbk", "is not UTF-8; it may be GBK")],
)
def test_listings_in_another_encoding_are_one_sentence(tmp_path, encoding, reason):
    put(tmp_path, "1.png")
    list_in(tmp_path, "1.png", encoding=encoding)
    with pytest.raises(ValueError, match=rf"metadata.jsonl {reason}.*: save it as UTF-8$") as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)


def test_one_damaged_line_is_not_a_damaged_file(tmp_path):
    put(tmp_path, "1.png")
    put(tmp_path, "2.png")
    list_in(tmp_path, "1.png")
    deep = b'{"file_name": "2.png", "caption": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    with open(tmp_path / "metadata.jsonl", "ab") as file:
        file.write('{"file_name": "2.png", "caption": "一只猫坐在桌上"}\n'.encode("gbk") + deep + b"[1]\n")
    source = open_source(tmp_path)
    assert source.keys == ["1"]
    reasons = [problem.reason for problem in source.bad]
    assert "not UTF-8" in reasons[0] and "not JSON" in reasons[1] and "not a JSON object but list" in reasons[2]
    assert all(f"metadata.jsonl:{number}" in problem.source for number, problem in enumerate(source.bad, 2))


# ---- what is no shard


def as_zstd(data: bytes) -> bytes:
    return b"\x28\xb5\x2f\xfd" + data


@pytest.mark.parametrize(
    "pack, reason",
    [
        (gzip.compress, "compressed with gzip.*gunzip"),
        (bz2.compress, "compressed with bzip2.*bunzip2"),
        (lzma.compress, "compressed with xz.*unxz"),
        (as_zstd, "compressed with Zstandard.*unzstd"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (lambda data: b"PK\x03\x04" + data, "is a ZIP archive"),
        (lambda data: bytes(10240), "holds no samples"),
        (lambda data: b"", "zero length"),
        (lambda data: b"<html>not found</html>" * 40, "not a tar file"),
        (lambda data: data[:530], "cut off inside member '00000.png'"),
    ],
)
def test_what_is_no_shard_is_said_in_one_sentence(tmp_path, pack, reason):
    path = write_tar(tmp_path / "0.tar", samples(1), mtime=1)
    path.write_bytes(pack(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"no usable sample \(.*0.tar.*{reason}") as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)
    write_tar(tmp_path / "1.tar", samples(1))
    assert [problem.source for problem in open_source(tmp_path).bad] == [str(path)]


def test_folders_of_compressed_shards(tmp_path):
    path = write_tar(tmp_path / "0.tar", samples(1))
    (tmp_path / "1.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    source = open_source(tmp_path)
    assert len(source) == 1 and "gunzip" in source.bad[0].reason
    path.unlink()
    with pytest.raises(ValueError, match=r"holds compressed shards \(1.tar.gz\).*unpack them to .tar"):
        open_source(tmp_path)


def test_what_may_not_be_read(tmp_path):
    put(tmp_path, "folder/1.png")
    put(tmp_path, "folder/locked/2.png")
    list_in(tmp_path / "folder", "1.png", "locked/2.png")
    (tmp_path / "shards").mkdir()
    for name in "01":
        write_tar(tmp_path / "shards" / f"{name}.tar", samples(1))
    (tmp_path / "closed").mkdir()
    script = """
import os, sys
from ppvilg.data import open_source
for name in ("folder", "shards", "closed"):
    try:
        source = open_source(os.path.join(sys.argv[1], name))
        print(name, len(source), [problem.reason for problem in source.bad])
    except PermissionError as error:
        print(name, error)
"""
    command = [sys.executable, "-c", script, tmp_path]
    if os.getuid() == 0:  # to whom nothing is forbidden unless it is taken from him
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    for path in ("folder/locked", "shards/1.tar", "closed"):
        os.chmod(tmp_path / path, 0)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    for path in ("folder/locked", "shards/1.tar", "closed"):
        os.chmod(tmp_path / path, 0o755)
    assert done.returncode == 0, done.stderr
    folder, shards, closed = done.stdout.splitlines()
    assert folder.startswith("folder 1 ['folder cannot be read (Permission denied)', \"image is missing")
    assert shards == "shards 1 ['cannot be read (Permission denied)']"
    assert closed.endswith("closed may not be read by this user: change its permissions")


def test_without_a_listing_captions_are_in_the_names_of_pictures(tmp_path):
    nameless = ["0001.png", "IMG_1234.jpg", "微信图片_20240101.png"]
    named = ["一只狐狸.png", "一只狐狸 (2).png", "b/红色背景上的一只狐狸_03.jpg", "a_red-brown_fox 2.webp"]
    for name in nameless + named:
        put(tmp_path, name)
    source = open_source(tmp_path)
    assert {source.read_text(i).key: source.read_text(i).captions for i in range(len(source))} == {
        "一只狐狸": {"zh": "一只狐狸"},
        "一只狐狸 (2)": {"zh": "一只狐狸"},
        "b/红色背景上的一只狐狸_03": {"zh": "红色背景上的一只狐狸"},
        "a_red-brown_fox 2": {"en": "a red-brown fox"},
    }
    assert [Path(problem.source).name for problem in source.bad] == nameless
    assert "name the file after what it shows" in source.bad[0].reason


def test_text_files_beside_pictures_are_their_captions_and_all_need_one(tmp_path):
    for name in ("1.png", "2.png", "一只猫.png", "4.png"):
        put(tmp_path, name)
    put(tmp_path, "1.txt", "\ufeff一只狐狸\n".encode())
    put(tmp_path, "2.caption", "一只狗".encode("gbk"))
    put(tmp_path, "4.txt", b" \n")
    put(tmp_path, "notes.txt", b"of no picture")
    source = open_source(tmp_path)
    assert [source.read_text(i).captions for i in range(len(source))] == [{"zh": "一只狐狸"}]
    assert [(problem.key, problem.reason.partition(",")[0]) for problem in source.bad] == [
        ("2", "not UTF-8 (byte 4)"),
        ("4", "its caption is missing: 4.txt is empty"),
        ("一只猫", "its caption is missing: other pictures have a text file"),
    ]
    before = source.fingerprint()
    put(tmp_path, "1.txt", "两只狐狸".encode())
    assert open_source(tmp_path).fingerprint() != before, "changed captions are other data"


def test_a_folder_without_pictures_says_what_it_may_hold(tmp_path):
    put(tmp_path, "readme.txt", b"nothing here")
    with pytest.raises(ValueError, match="pictures, whose captions are in one .jsonl"):
        open_source(tmp_path)
