import io
import itertools
import json
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from ppvilg.data import BadSample, ObjectBox, TooManyBadSamples, decode_image, open_source, validate_objects
from ppvilg.data.records import expand_braces, image_size


def encode(color=(200, 30, 40), size=(16, 8), kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image = color if isinstance(color, Image.Image) else Image.new("RGB", size, color)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_tar(path, members, format=tarfile.PAX_FORMAT, mtime=1.5):
    """members: (name, bytes or text); a broken mtime makes pax headers, as webdataset's writer does."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), mtime
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(count, start=0):
    for number in range(start, start + count):
        yield f"{number:05d}.png", encode((number, 0, 0))
        yield f"{number:05d}.txt", f"第{number}只猫"


def write_sidecar(path, entries, header=True):
    lines = [{"tool": "test", "version": "1"}] if header else []
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in [*lines, *entries]) + "\n", "utf-8")
    return path


def bomb_png(width, height) -> bytes:
    """A few bytes that claim to be a width x height picture."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


# ---- reading


def test_shard_as_img2dataset_writes_it(tmp_path):
    details = {"url": "http://a/b.jpg", "key": "000000001", "status": "success", "error_message": None, "sha256": "ab"}
    members = [
        ("000000001.jpg", encode(size=(16, 8), kind="JPEG")),
        ("000000001.json", json.dumps(details | {"caption": "a red box", "width": 16, "height": 8, "exif": "{}"})),
        ("000000001.txt", "a red box"),
        ("000000002.webp", encode(size=(8, 24), kind="WEBP")),
        ("000000002.json", json.dumps(details | {"caption": "红色的盒子", "width": None, "height": None})),
    ]
    source = open_source(write_tar(tmp_path / "00000.tar", members))
    assert source.keys == ["000000001", "000000002"]
    assert source.sizes.dtype == np.int32 and source.sizes.tolist() == [[16, 8], [8, 24]]
    assert source.bad == []
    first = source.read(0)
    assert first.captions == {"en": "a red box"} and first.image.size == (16, 8) and first.image.mode == "RGB"
    assert first.source == f"{tmp_path / '00000.tar'}:000000001.jpg"
    assert first.extra == {"url": "http://a/b.jpg", "sha256": "ab"}
    assert source.read(1).captions == {"zh": "红色的盒子"}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_tar_dialect_gives_the_bytes_tarfile_gives(tmp_path, format):
    folder = "a" * 60 + "/" + "b" * 60 if format == tarfile.USTAR_FORMAT else "很长的名字" * 30
    names = [f"{folder}/{number}" for number in range(3)]
    members = [
        (f"{name}.{kind}", data)
        for i, name in enumerate(names)
        for kind, data in (("png", encode((i, 9, 9))), ("txt", "猫"))
    ]
    source = open_source(
        write_tar(tmp_path / "x.tar", members, format, mtime=1 if format == tarfile.USTAR_FORMAT else 1.5)
    )
    assert source.keys == names and source.bad == []
    assert [source.read(i).image.getpixel((0, 0)) for i in range(3)] == [(0, 9, 9), (1, 9, 9), (2, 9, 9)]


def test_sidecar_gives_captions_objects_tags_and_extra(tmp_path):
    write_tar(tmp_path / "0.tar", samples(3))
    entry = {
        "key": "00001",
        "width": 16,
        "height": 8,
        "captions": {"zh": "一只猫", "en": "a cat", "generated": " 猫咪 "},
        "objects": [{"label": "猫", "box": [1, 2, 9.5, 8], "score": 0.5}],
        "tags": [["一只", "m"], ["猫", "n"]],
        "split": "held-out",
    }
    write_sidecar(tmp_path / "annotations.jsonl", [entry, {"key": "00009", "captions": {"zh": "狗"}}])
    source = open_source(tmp_path)
    record = source.read(1)
    assert record.captions == {"zh": "一只猫", "en": "a cat", "generated": "猫咪"}
    assert record.objects == [ObjectBox("猫", (1.0, 2.0, 9.5, 8.0), 0.5)]
    assert record.tags == [("一只", "m"), ("猫", "n")] and record.extra == {"split": "held-out"}
    assert source.read(0).captions == {"zh": "第0只猫"} and source.read(0).tags is None
    assert source.annotations_without_sample == ["00009"]
    assert source.samples_without_annotation == ["00000", "00002"]
    assert "00009" in source.summary() and "00002" in source.summary()


def test_read_text_equals_read_and_touches_no_file(tmp_path):
    path = write_tar(tmp_path / "0.tar", samples(4))
    source = open_source(path)
    decoded = [source.read(i) for i in range(4)]
    path.unlink()
    for i, record in enumerate(decoded):
        text = source.read_text(i)
        assert text.image is None
        assert (text.key, text.captions, text.source) == (record.key, record.captions, record.source)
    with pytest.raises(IndexError):
        source.read_text(4)


def test_folder_with_jsonl(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "a.png").write_bytes(encode((1, 2, 3)))
    (tmp_path / "in" / "b.jpg").write_bytes(encode(kind="JPEG"))
    (tmp_path / "alone.png").write_bytes(encode())
    lines = [
        {"file_name": "a.png", "text": "a cat", "objects": [{"label": "cat", "box": [0, 0, 4, 4]}]},
        {"key": "in/b", "captions": {"zh": "狗"}},
        {"file_name": "../outside.png", "caption": "x"},
        {"caption": "no picture named"},
    ]
    write_sidecar(tmp_path / "metadata.jsonl", lines, header=False)
    source = open_source(tmp_path)
    assert source.keys == ["a", "in/b"]
    assert source.read(0).image.getpixel((0, 0)) == (1, 2, 3) and source.read(0).captions == {"en": "a cat"}
    assert source.read(0).objects == [ObjectBox("cat", (0.0, 0.0, 4.0, 4.0), 1.0)]
    assert source.read(1).captions == {"zh": "狗"}
    text = "\n".join(map(str, source.bad))
    assert len(source.bad) == 2
    assert "outside.png" in text and "metadata.jsonl:4" in text and "alone.png" in source.summary()


def test_a_folder_without_captions_or_with_two_listings_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(encode())
    with pytest.raises(ValueError, match="a.png.*caption is missing"):
        open_source(tmp_path)
    write_sidecar(tmp_path / "x.jsonl", [])
    write_sidecar(tmp_path / "y.jsonl", [])
    with pytest.raises(ValueError, match=r"x\.jsonl, y\.jsonl"):
        open_source(tmp_path)


def test_a_range_without_end():
    with pytest.raises(ValueError, match="more than 1048576 shards"):
        open_source("x-{0..99999999999}.tar")


def test_brace_pattern(tmp_path):
    for shard in range(3):
        write_tar(tmp_path / f"x-{shard:03d}.tar", samples(2, start=2 * shard))
    source = open_source(str(tmp_path / "x-{000..002}.tar"))
    assert source.keys == [f"{number:05d}" for number in range(6)]
    assert [source.read(i).image.getpixel((0, 0))[0] for i in (5, 0, 3)] == [5, 0, 3]
    assert expand_braces("{a,b}-{8..10}.tar")[:3] == ["a-8.tar", "a-9.tar", "a-10.tar"]
    with pytest.raises(FileNotFoundError, match="x-003.tar"):
        open_source(str(tmp_path / "x-{000..003}.tar"))
    with pytest.raises(ValueError, match="backwards"):
        expand_braces("x-{3..1}.tar")


def test_fingerprint_follows_the_data_not_the_place(tmp_path):
    def build(folder, caption="猫", box=4):
        folder.mkdir()
        write_tar(folder / "0.tar", [("a.png", encode()), ("a.txt", caption)])
        entry = {"key": "a", "objects": [{"label": "猫", "box": [0, 0, box, 4]}]}
        write_sidecar(folder / "annotations.jsonl", [entry])
        return open_source(folder).fingerprint()

    original = build(tmp_path / "one")
    assert original == build(tmp_path / "two") and len(original) == 64
    assert original != build(tmp_path / "three", caption="狗")
    assert original != build(tmp_path / "four", box=5)


# ---- damage found while indexing


def member_offsets(path):
    with tarfile.open(path) as tar:
        return {member.name: (member.offset, member.offset_data, member.size) for member in tar}


def test_shard_cut_inside_a_picture_keeps_the_whole_samples(tmp_path):
    path = write_tar(tmp_path / "cut.tar", samples(4))
    _, data, size = member_offsets(path)["00002.png"]
    path.write_bytes(path.read_bytes()[: data + size // 2])
    source = open_source(path)
    assert source.keys == ["00000", "00001"] and source.read(1).image.getpixel((0, 0)) == (1, 0, 0)
    (problem,) = source.bad
    assert problem.source == str(path) and problem.key == "00002"
    assert "cut off inside member '00002.png'" in problem.reason and "byte" in problem.reason


def test_shard_cut_inside_a_caption_drops_that_sample(tmp_path):
    path = write_tar(tmp_path / "cut.tar", samples(3))
    _, data, size = member_offsets(path)["00001.txt"]
    path.write_bytes(path.read_bytes()[: data + size - 1])
    source = open_source(path)
    assert source.keys == ["00000"] and [problem.key for problem in source.bad] == ["00001"]


@pytest.mark.parametrize("extra, reason", [(0, "end-of-archive mark is missing"), (100, "cut off inside a header")])
def test_shard_cut_between_members(tmp_path, extra, reason):
    path = write_tar(tmp_path / "cut.tar", samples(3), tarfile.USTAR_FORMAT, mtime=1)
    offset, _, _ = member_offsets(path)["00002.png"]
    path.write_bytes(path.read_bytes()[: offset + extra])
    source = open_source(path)
    assert source.keys == ["00000", "00001"]
    assert [reason in problem.reason and f"byte {offset}" in problem.reason for problem in source.bad] == [True]


def test_every_cut_is_named_and_keeps_only_whole_samples(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", samples(3)).read_bytes()
    ends = {name: data + size for name, (_, data, size) in member_offsets(tmp_path / "whole.tar").items()}
    end_of_members = -(-ends["00002.txt"] // 512) * 512
    path = tmp_path / "cut.tar"
    for cut in range(ends["00000.txt"], end_of_members + 512, 97):
        path.write_bytes(whole[:cut])
        source = open_source(path)
        expected = [f"{number:05d}" for number in range(3) if ends[f"{number:05d}.txt"] <= cut]
        assert source.keys == expected, cut
        assert any("cut off" in problem.reason for problem in source.bad), cut
        assert len(source.read(len(source) - 1).captions["zh"]) == 4


def test_corrupt_header_in_the_middle_is_named_with_its_offset(tmp_path):
    path = write_tar(tmp_path / "x.tar", samples(3), tarfile.USTAR_FORMAT, mtime=1)
    offset, _, _ = member_offsets(path)["00001.png"]
    data = bytearray(path.read_bytes())
    data[offset + 10] ^= 0xFF
    path.write_bytes(data)
    source = open_source(path)
    assert source.keys == ["00000"]
    assert "corrupt header" in source.bad[0].reason and f"byte {offset}" in source.bad[0].reason


def test_zero_length_compressed_and_hopeless_shards(tmp_path):
    good = write_tar(tmp_path / "0.tar", samples(1))
    (tmp_path / "1.tar").write_bytes(b"")
    (tmp_path / "2.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    (tmp_path / "3.tar").write_bytes(b"not a tar at all" * 64)
    source = open_source(tmp_path)
    assert source.keys == ["00000"]
    reasons = {problem.source[-5:]: problem.reason for problem in source.bad}
    assert "zero length" in reasons["1.tar"] and "gunzip" in reasons["2.tar"] and "corrupt header" in reasons["3.tar"]
    good.unlink()
    with pytest.raises(ValueError, match="no usable sample.*zero length"):
        open_source(tmp_path)


def test_samples_that_lack_or_repeat_something_are_named(tmp_path):
    members = [
        *samples(1),
        ("00001.txt", "没有图"),
        ("00002.png", encode()),
        ("00003.png", encode()),
        ("00003.txt", "  \n"),
        ("00004.png", encode()),
        ("00004.jpg", encode(kind="JPEG")),
        ("00004.txt", "两张图"),
        ("00000.png", encode((9, 9, 9))),
        ("00005.png", b"this is no picture"),
        ("00005.txt", "坏图"),
        ("00006.png", encode()),
        ("00006.txt", b"\xff\xfe\xff"),
        ("00007.png", encode()),
        ("00007.json", '{"caption": "x"'),
        (".hidden", "x"),
    ]
    source = open_source(write_tar(tmp_path / "0.tar", members))
    assert source.keys == ["00000"] and source.read(0).image.getpixel((0, 0)) == (0, 0, 0)
    reasons = [(problem.key, problem.reason) for problem in source.bad]
    for key, part in [
        ("00001", "image is missing"),
        ("00002", "caption is missing"),
        ("00003", "caption is missing or empty"),
        ("00004", "2 images"),
        ("00000", "duplicate key in one shard"),
        ("00005", "not a picture of a supported type"),
        ("00006", "cannot be read"),
        ("00007", "cannot be read"),
        ("", "no key"),
    ]:
        assert any(key == found and part in reason for found, reason in reasons), (key, part)
    assert len(reasons) == 9
    with pytest.raises(TooManyBadSamples, match="9 bad samples of 10.*problems.jsonl"):
        source.check_share(0.8)
    source.check_share(0.9)


def test_texts_that_are_none_are_named(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    texts = ["一只灰色的猫坐在桌子上".encode("gbk"), "猫".encode("utf-16"), pointer, "\ufeff猫\r\n".encode()]
    pairs = (((f"{number}.png", encode()), (f"{number}.txt", text)) for number, text in enumerate(texts))
    write_tar(tmp_path / "0.tar", itertools.chain(*pairs))
    source = open_source(tmp_path)
    assert [source.read(i).captions for i in range(len(source))] == [{"zh": "猫"}]
    reasons = " ".join(problem.reason for problem in source.bad)
    assert len(source.bad) == 3 and reasons.count("perhaps GBK or UTF-16") == 2 and "Git LFS pointer" in reasons


def test_a_shard_that_is_a_broken_link_is_not_left_out(tmp_path):
    write_tar(tmp_path / "0.tar", samples(1))
    (tmp_path / "1.tar").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="1.tar.*1 of 2 missing"):
        open_source(tmp_path)


def test_links_are_named_and_the_rest_of_the_shard_is_read(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("00000.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in samples(1, start=1):
            info = tarfile.TarInfo(name)
            content = content.encode() if isinstance(content, str) else content
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    source = open_source(path)
    assert source.keys == ["00001"]
    assert [(problem.key, "not a plain file" in problem.reason) for problem in source.bad] == [("00000", True)]


@pytest.mark.parametrize(
    "fields, part",
    [
        ({"objects": [{"label": "猫", "box": [1, 2, 3]}]}, "box"),
        ({"objects": [{"box": [1, 2, 3, 4]}]}, "label"),
        ({"objects": {"label": "猫"}}, "list"),
        ({"objects": [{"label": "猫", "box": [0, 0, 10**400, 4]}]}, "annotation"),
        ({"captions": {"fr": "chat"}}, "fr"),
        ({"captions": {"zh": 3}}, "must be text"),
        ({"tags": [["猫"]]}, "tags"),
        ({"objects": [{"label": "猫", "box": [0, 0, 4, 4], "score": float("nan")}]}, "score"),
        ({"width": 8, "height": 16, "objects": [{"label": "猫", "box": [0, 0, 4, 4]}]}, "drawn on a picture of 8x16"),
        ({"width": 0, "height": 8, "objects": [{"label": "猫", "box": [0, 0, 4, 4]}]}, "drawn on a picture of 0x0"),
    ],
)
def test_malformed_annotation_names_key_and_fault(tmp_path, fields, part):
    write_tar(tmp_path / "0.tar", samples(2))
    write_sidecar(tmp_path / "annotations.jsonl", [{"key": "00001", **fields}])
    source = open_source(tmp_path)
    assert source.keys == ["00000"]
    assert [problem.key for problem in source.bad] == ["00001"] and part in source.bad[0].reason


def test_broken_sidecar_lines_are_named_with_their_number(tmp_path):
    write_tar(tmp_path / "0.tar", samples(2))
    path = write_sidecar(tmp_path / "side.jsonl", [{"key": "00000", "captions": {"zh": "甲"}}, {"key": "00000"}])
    path.write_bytes(path.read_bytes() + b'{"key": "00001", "capt')
    source = open_source(tmp_path, annotations=path)
    assert source.read_text(0).captions == {"zh": "甲"} and len(source) == 2
    assert [problem.source for problem in source.bad] == [f"{path}:3", f"{path}:4"]
    with pytest.raises(ValueError, match="first line must be a header"):
        open_source(tmp_path, annotations=write_sidecar(path, [{"key": "00000"}], header=False))
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path, annotations=tmp_path / "missing.jsonl")


# ---- damage found while reading


@pytest.mark.parametrize("size", [(8, 16), (0, 8), ("16", 8), (2**20, 2**20), (16.0, 8.0), (None, 8)])
def test_a_declared_size_is_a_hint(tmp_path, size):
    """In the sidecar and in a shard's own .json: the picture decides, and the summary says it once."""
    declared = dict(zip(("width", "height"), size))
    members = [("a.png", encode()), ("a.json", json.dumps({"caption": "猫", **declared})), *samples(2)]
    write_tar(tmp_path / "0.tar", members)
    write_sidecar(tmp_path / "annotations.jsonl", [{"key": "00000", **declared}, {"key": "00001", "width": 16}])
    source = open_source(tmp_path)
    assert source.bad == [] and source.sizes.tolist() == [[16, 8]] * 3
    assert all(source.read(i).image.size == (16, 8) for i in range(3))
    lines = [line for line in source.summary().splitlines() if "declared sizes" in line]
    assert len(lines) == 1 and "3 declared sizes" in lines[0] and "0.tar:a.png is said to be" in lines[0]


def test_hints_of_old_downloads_of_phones_and_of_late_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    png = encode(size=(40, 20))
    chunk = b"eXIf" + exif.tobytes()[6:]
    late = png[:-12] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[-12:]
    kinds = {"stale": ("jpg", encode(size=(40, 20), kind="JPEG"), {"width": 640, "height": 320}),
             "phone": ("jpg", encode(size=(40, 20), kind="JPEG", exif=exif), {"width": 40, "height": 20}),
             "late": ("png", late, {})}  # fmt: skip
    members = [(f"{key}.{name}", data) for key, (ext, picture, size) in kinds.items()
               for name, data in ((ext, picture), ("json", json.dumps({"caption": "猫", **size})))]  # fmt: skip
    source = open_source(write_tar(tmp_path / "0.tar", members))
    assert [source.read(i).image.size for i in range(3)] == [(40, 20), (20, 40), (20, 40)]
    assert source.sizes.tolist() == [[40, 20], [20, 40], [20, 40]] and "2 declared sizes" in source.summary()


def test_a_picture_that_is_not_what_its_header_said_still_decides(tmp_path):
    """As where the index holds another size: boxes are checked against the picture."""
    write_tar(tmp_path / "0.tar", samples(2))
    objects = [{"label": "猫", "box": [0, 0, 20, 8]}]
    write_sidecar(tmp_path / "annotations.jsonl", [{"key": "00001", "objects": objects}])
    source = open_source(tmp_path)
    source.sizes = np.full((2, 2), 30, np.int32)
    assert source.read(0).image.size == (16, 8)
    with pytest.raises(BadSample, match="leaves the 16x8 picture"):
        source.read(1)


@pytest.mark.parametrize(
    "box", [[float("nan"), 0, 4, 4], [-1, 0, 4, 4], [4, 0, 4, 4], [5, 0, 4, 4], [0, 0, 17, 4], [0, 0, 4, 9]]
)
def test_wrong_box_names_key_and_box(tmp_path, box):
    write_tar(tmp_path / "0.tar", samples(1))
    write_sidecar(tmp_path / "annotations.jsonl", [{"key": "00000", "objects": [{"label": "猫", "box": box}]}])
    source = open_source(tmp_path)
    for read in (source.read, source.read_text):
        with pytest.raises(BadSample) as caught:
            read(0)
        assert caught.value.key == "00000" and str([float(value) for value in box]) in caught.value.reason


def test_infinite_box_is_refused():
    with pytest.raises(BadSample, match="not finite"):
        validate_objects([ObjectBox("猫", (0.0, 0.0, float("inf"), 1.0))], 16, 8, "k")


def test_shard_that_shrank_after_indexing(tmp_path):
    path = write_tar(tmp_path / "0.tar", samples(2))
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(BadSample, match="cut off since indexing"):
        source.read(1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_and_corrupt_pictures(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    data = encode(noise, kind=kind)
    assert decode_image(data).size == (32, 32)
    with pytest.raises(BadSample, match="cannot be decoded"):
        decode_image(data[: len(data) // 2], "k")
    with pytest.raises(BadSample, match="not a picture") as caught:
        decode_image(b"\x00" * 50, "key7", "shard.tar:key7.png")
    assert caught.value.key == "key7" and "shard.tar:key7.png" in str(caught.value)


def test_damaged_bytes_never_raise_anything_else():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8))
    rng = np.random.default_rng(1)
    outcomes = set()
    for kind in ("PNG", "JPEG", "WEBP"):
        data = np.frombuffer(encode(noise, kind=kind), dtype=np.uint8)
        for _ in range(60):
            damaged = data.copy()
            damaged[rng.integers(len(data), size=4)] = rng.integers(0, 256, size=4, dtype=np.uint8)
            try:
                assert decode_image(damaged.tobytes(), max_pixels=2**16).mode == "RGB"
                outcomes.add("picture")
            except BadSample:
                outcomes.add("bad")
    assert outcomes == {"picture", "bad"}


@pytest.mark.parametrize("size", [(9000, 9000), (12000, 12000), (60000, 60000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused_before_decoding(tmp_path, size):
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(BadSample, match="bomb"):  # decoding first would say "cannot be decoded"
        decode_image(bomb_png(*size), "k")
    assert Image.MAX_IMAGE_PIXELS == limit
    members = [*samples(1), ("bomb.png", bomb_png(*size)), ("bomb.txt", "炸弹")]
    source = open_source(write_tar(tmp_path / "0.tar", members))
    assert source.keys == ["00000"] and [problem.key for problem in source.bad] == ["bomb"]


def test_limit_of_pixels_can_be_set(tmp_path):
    path = write_tar(tmp_path / "0.tar", samples(1))
    with pytest.raises(ValueError, match="16x8 pixels are more than the limit of 127"):
        open_source(path, max_pixels=127)
    assert len(open_source(path, max_pixels=128)) == 1


# ---- what a picture becomes


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (3, (15, 7)), (6, (7, 0)), (8, (0, 15)), (5, (0, 0))])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_turns_the_picture_and_its_size(orientation, corner, kind):
    image = Image.new("RGB", (16, 8), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if kind == "PNG" else {"quality": 95}
    data = encode(image, kind=kind, exif=exif, **options)
    upright = decode_image(data)
    assert upright.size == image_size(data) == ((8, 16) if orientation in (5, 6, 8) else (16, 8))
    assert max(upright.getpixel(corner)) < 60


def test_json_size_before_rotation_is_not_trusted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    details = {"caption": "猫", "width": 16, "height": 8, "exif": '{"Image Orientation": "Rotated 90 CW"}'}
    members = [("a.jpg", encode(kind="JPEG", exif=exif)), ("a.json", json.dumps(details))]
    source = open_source(write_tar(tmp_path / "0.tar", members))
    assert source.sizes.tolist() == [[8, 16]] and source.read(0).image.size == (8, 16)


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 1), (0, 0, 255, 255))
    image.putpixel((2, 2), (0, 0, 0, 128))
    for mode in ("RGBA", "LA"):
        upright = decode_image(encode(image.convert(mode)))
        assert upright.mode == "RGB" and upright.getpixel((0, 0)) == (255, 255, 255)
        assert abs(upright.getpixel((2, 2))[0] - 127) <= 1
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9, 0, 200, 0])
    palette.putpixel((3, 3), 1)
    upright = decode_image(encode(palette, transparency=0))
    assert upright.getpixel((0, 0)) == (255, 255, 255) and upright.getpixel((3, 3)) == (0, 200, 0)


def test_grey_pictures_become_rgb():
    assert decode_image(encode(Image.new("L", (4, 4), 77))).getpixel((0, 0)) == (77, 77, 77)
    assert decode_image(encode(Image.new("1", (4, 4), 1))).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((4, 4), 0x4D00, dtype=np.uint16))
    assert decode_image(encode(deep)).getpixel((0, 0)) == (77, 77, 77)
