"""Prove an export bundle on this machine: what each back end computes, and how long a step takes.

ppvilg prove output/export/emoji64
ppvilg prove output/export/emoji64 --backends onnxruntime openvino --threads 4

The proofs are kept in the bundle, or in the user's cache folder if the bundle cannot be written to. A pipeline that is
opened without a back end takes the fastest that is proven on its machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import new_parser, use_device
from .backend_arguments import add_backend_settings, backend_options


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line -> arguments."""
    parser = new_parser("prove", __doc__)
    parser.add_argument("bundle", type=Path, help="what ppvilg export wrote")
    parser.add_argument(
        "--backends", nargs="+", metavar="BACKEND", help="(all that are here and have graphs in the bundle)"
    )
    parser.add_argument("--output", type=Path, help="another file for the proofs, JSON")
    add_backend_settings(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    use_device(None)
    from ppvilg.export import prove_bundle, report
    from ppvilg.export.prove import available_backends
    from ppvilg.inference import read_manifest

    manifest = read_manifest(arguments.bundle)
    names = arguments.backends or [each.backend for each in available_backends(arguments.bundle, manifest)]
    options = [backend_options(name, arguments) for name in names]
    proofs = prove_bundle(arguments.bundle, options, arguments.output)
    print(report(manifest, proofs))
    return 0
