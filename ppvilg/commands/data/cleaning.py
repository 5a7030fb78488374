"""Options of clean-up, and what they mean."""

from __future__ import annotations

import argparse

from ppvilg.annotate.cleaning import Cleaning

from ..arguments import real, whole


def add_cleaning(parser: argparse.ArgumentParser) -> None:
    """Options of clean-up: what leaves a sample out of training."""
    group = parser.add_argument_group("clean-up", "samples that are left out are counted in the report, each by the "
                                      "first reason")  # fmt: skip
    group.add_argument("--min-side", type=whole(1), metavar="PIXELS", help="leave out pictures with a shorter side")
    group.add_argument("--max-aspect", type=real(1, 1000), metavar="RATIO", help="leave out pictures one side of which "
                       "is longer than so many times the other")  # fmt: skip
    group.add_argument("--caption-language", choices=("zh", "en"), help="leave out samples without a caption in it")
    group.add_argument("--max-text", type=real(0, 1), metavar="SHARE", help="leave out pictures of which text covers "
                       "more (watermarks, posters)")  # fmt: skip
    group.add_argument("--max-nsfw", type=real(0, 1), metavar="SCORE", help="leave out pictures that the not-safe "
                       "filter scores higher; its authors say 0.8")  # fmt: skip
    group.add_argument("--hashes", action="store_true", help="note perceptual hashes, for --mark-duplicates")
    group.add_argument("--mark-duplicates", type=whole(0, 15), metavar="BITS", help="when all sidecars are there: "
                       "leave out pictures whose hash differs in up to so many of 64 bits from an earlier one's; 4 is "
                       "usual")  # fmt: skip


def cleaning_of(arguments: argparse.Namespace) -> Cleaning:
    """What the options leave out."""
    return Cleaning(
        min_side=arguments.min_side,
        max_aspect=arguments.max_aspect,
        language=arguments.caption_language,
        max_text=arguments.max_text,
        max_nsfw=arguments.max_nsfw,
        hashes=arguments.hashes,
    )
