"""report.html: one file with everything inside it, readable without a network and years later."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ppvilg.files import write_whole

from .figures import svg

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, "Noto Sans CJK SC", "Microsoft YaHei", sans-serif; max-width: 72rem;
       margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #8886; text-align: left; vertical-align: top; }
td.number { text-align: right; }
.pictures { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; }
figure { margin: 0; }
.pictures figcaption { font-size: .75rem; max-width: 12rem; overflow-wrap: anywhere; }
.pictures img { image-rendering: pixelated; max-width: 16rem; }
.plot { background: #fff; display: inline-block; padding: .5rem; margin: 1rem 0; max-width: 100%; overflow-x: auto; }
.plot figcaption { color: #333; font-size: .85rem; max-width: 40rem; }
pre { overflow-x: auto; background: #8882; padding: 1rem; font-size: .85rem; }
"""


class Report:
    """A page that is filled from top to bottom and then written."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """A section begins."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """Plain text."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Cells that are numbers stand on the right; they are shown as they are, so round them first."""
        head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
        self._parts.append(f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>")

    def pictures(self, images: Sequence[Image.Image], captions: Sequence[str] | None = None, scale: int = 1) -> None:
        """Pictures in rows, each `scale` times as large on the page, with what stands below each."""
        captions = [""] * len(images) if captions is None else captions
        figures = [
            f'<figure><img src="{_data_uri(image)}" width="{scale * image.width}" alt="">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            for image, caption in zip(images, captions)
        ]
        self._parts.append('<div class="pictures">' + "\n".join(figures) + "</div>")

    def sheet(self, image: Image.Image) -> None:
        """One large picture, as wide as the page at most."""
        self._parts.append(f'<p><img src="{_data_uri(image)}" style="max-width: 100%" alt=""></p>')

    def plot(self, figure: Any, caption: str = "") -> None:
        """A matplotlib figure as SVG; its text stays text."""
        below = f"<figcaption>{html.escape(caption)}</figcaption>"
        self._parts.append(f'<figure class="plot">{svg(figure)}{below}</figure>')

    def data(self, content: Mapping) -> None:
        """A JSON object, indented."""
        self._parts.append(f"<pre>{html.escape(json.dumps(content, ensure_ascii=False, indent=1))}</pre>")

    def write(self, path: Path) -> None:
        """The page, whole or not at all."""
        head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title><style>{STYLE}</style>'
        view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
        top = f'<!DOCTYPE html>\n<html lang="en"><head>{head}{view}</head>\n<body>'
        write_whole(path, "\n".join([top, *self._parts, "</body></html>\n"]))


def _cell(value: Any) -> str:
    kind = ' class="number"' if isinstance(value, (int, float)) and not isinstance(value, bool) else ""
    return f"<td{kind}>{html.escape('' if value is None else str(value))}</td>"


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

