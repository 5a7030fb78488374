"""Pictures of prompts on disk as GenEval (Ghosh et al. 2023, arXiv 2310.11513) lays them out.

evaluation_metadata.jsonl   one line per prompt
00000/metadata.jsonl        the line of this prompt
00000/samples/0000.png      its pictures
00000/grid.png
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from ppvilg.files import PictureError, read_picture, read_text, whole_file, write_whole
from ppvilg.pipelines import make_grid, save_png

METADATA = "evaluation_metadata.jsonl"
PROTOCOL = "protocol.json"
TAGS = {"single": "single_object", "pair": "position", "count": "counting"}
RELATIONS = {"left": "left of", "above": "above"}


def geneval_metadata(prompt: dict) -> dict:
    """GenEval's keys for a prompt of `held_out_prompts`, with the prompt's own beside them; any other as it is."""
    if "kind" not in prompt:
        return dict(prompt)
    names = [item["label_en"] for item in prompt["objects"]]
    metadata: dict = {"tag": TAGS[prompt["kind"]]}
    if prompt["kind"] == "pair":
        # A position is one object's towards another that is listed before it.
        position = [RELATIONS[prompt["relation"]], 0]
        metadata["include"] = [
            {"class": names[1], "count": 1},
            {"class": names[0], "count": 1, "position": position},
        ]
    else:
        metadata["include"] = [{"class": names[0], "count": len(names)}]
    if prompt["kind"] == "count":
        metadata["exclude"] = [{"class": names[0], "count": len(names) + 1}]
    return {**metadata, **prompt}


class PictureFolder:
    """The pictures of a list of prompts, drawn at most once each.

    protocol: everything the pictures depend on besides the prompts. ValueError when the folder already holds pictures
    of other prompts or another protocol, naming what differs.
    """

    def __init__(self, folder: str | os.PathLike, prompts: Sequence[dict], images_per_prompt: int, protocol: dict):
        self.folder, self.images_per_prompt = Path(folder), images_per_prompt
        self.metadata = [geneval_metadata(prompt) for prompt in prompts]
        self._open(json.loads(json.dumps(protocol)))

    def _open(self, protocol: dict) -> None:
        path = self.folder / PROTOCOL
        if path.is_file():
            found = read_json(path)
            different = [key for key in sorted({*protocol, *found}) if protocol.get(key) != found.get(key)]
            if different:
                details = "; ".join(f"{key} {found.get(key)!r}, not {protocol.get(key)!r}" for key in different)
                raise ValueError(f"{self.folder} holds pictures of another protocol ({details}); choose another output")
        elif self.folder.is_dir() and any(path.name[0] != "." for path in self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty and has no {PROTOCOL}; choose another output")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(protocol, ensure_ascii=False, indent=1) + "\n")
        lines = [json.dumps(line, ensure_ascii=False) for line in self.metadata]
        self._keep(self.folder / METADATA, "".join(line + "\n" for line in lines))
        for index, line in enumerate(lines):
            self._keep(self.folder / f"{index:05d}" / "metadata.jsonl", line + "\n")

    def _keep(self, path: Path, text: str) -> None:
        """Write a file, or make sure that it says the same."""
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)
        elif read_text(path) != text:
            raise ValueError(f"{path} belongs to other prompts than these; choose another output")

    def path(self, prompt: int, image: int) -> Path:
        """Where picture `image` of prompt `prompt` is or will be."""
        return self.folder / f"{prompt:05d}" / "samples" / f"{image:04d}.png"

    def all(self) -> Iterator[tuple[int, int]]:
        """(prompt, image) of every picture."""
        for prompt in range(len(self.metadata)):
            for image in range(self.images_per_prompt):
                yield prompt, image

    def missing(self) -> list[tuple[int, int]]:
        """(prompt, image) of the pictures that are still to be drawn."""
        return [key for key in self.all() if not self.path(*key).is_file()]

    def write(self, prompt: int, image: int, picture: Image.Image, about: dict) -> None:
        """Add one picture; it appears under its name only when it is whole."""
        path = self.path(prompt, image)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.unlink()  # save_png writes over nothing
            save_png(picture, partial, {"prompt": self.metadata[prompt]["prompt"], **about})

    def read(self, prompt: int, image: int) -> Image.Image:
        """One picture; ValueError if the file is no picture of the prompt's size."""
        path, line = self.path(prompt, image), self.metadata[prompt]
        try:
            picture = read_picture(path)
        except PictureError as error:
            raise ValueError(f"{error}; remove it to have it drawn again") from error
        asked = line.get("width") or picture.width, line.get("height") or picture.height
        if picture.size != asked:
            size = "{}x{}".format(*asked)
            raise ValueError(f"{path} is {picture.width}x{picture.height}, its prompt asks for {size}")
        return picture

    def write_grids(self) -> None:
        """Grids of the prompts that have none."""
        for prompt in range(len(self.metadata)):
            path = self.folder / f"{prompt:05d}" / "grid.png"
            if not path.is_file():
                pictures = [self.read(prompt, image) for image in range(self.images_per_prompt)]
                write_png(make_grid(pictures, columns=4), path)


def write_png(picture: Image.Image, path: Path) -> None:
    """One PNG, whole or not at all."""
    with whole_file(path) as partial:
        picture.save(partial, format="PNG")


def read_json(path: Path, *needed: str) -> dict:
    """A JSON object from a file; ValueError names the file that holds none, or one without a `needed` key."""
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    lacking = [key for key in needed if key not in content]
    if lacking:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(lacking)}")
    return content
