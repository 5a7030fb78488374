"""Serve a model: a page and an API, with a store of jobs and pictures, on this machine alone unless told otherwise.

python tools/serve.py -m emoji64
python tools/serve.py --new-key "class 7b" --pictures-per-day 200
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .arguments import new_parser, real, whole


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line -> arguments."""
    parser = new_parser("serve", __doc__)
    parser.add_argument("-m", "--model", default="emoji64", help="zoo name, folder or bundle (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen; another address needs keys (%(default)s)")
    parser.add_argument("--port", type=whole(0, 65535), default=8000, help="(%(default)s)")
    parser.add_argument("--data", type=Path, default=Path("output/service"), help="folder of pictures (%(default)s)")
    parser.add_argument("--database", help="postgresql://USER:PASSWORD@HOST/NAME (SQLite in --data)")
    keys = parser.add_argument_group("keys")
    keys.add_argument("--new-key", metavar="NAME", help="make a key, print AK and SK once, and end")
    keys.add_argument("--revoke-key", metavar="NAME", help="refuse a key from now on, and end")
    keys.add_argument("--pictures-per-day", type=whole(1), help="quota of the new key (none)")
    keys.add_argument("--requests-per-minute", type=whole(1), help="rate of the new key (none)")
    keys.add_argument("--require-key", action="store_true", help="also on this machine, for example behind a proxy")
    parser.add_argument(
        "--redirect",
        type=whole(0, 65535),
        nargs="?",
        const=8001,
        metavar="PORT",
        help="also a proxy on this machine for clients that have Baidu's hosts written into them (8001)",
    )
    drawing = parser.add_argument_group("drawing")
    drawing.add_argument("--workers", type=whole(1), default=1, help="worker processes (%(default)s)")
    drawing.add_argument("--worker-only", action="store_true", help="draw for a server elsewhere that shares the store")
    drawing.add_argument("--slots", type=whole(1), default=8, help="pictures that share a step (%(default)s)")
    drawing.add_argument("--backend", help="of a bundle (the fastest that is proven on this machine)")
    drawing.add_argument("--device", help="cpu, gpu, gpu:1 (Paddle's own choice)")
    drawing.add_argument("--threads", type=whole(1), help="of the CPU, per worker (all cores)")
    drawing.add_argument("--max-resident-experts", type=whole(1), help="experts in memory at once (all)")
    drawing.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="an adapter that requests may choose by this name; may be given several times",
    )
    drawing.add_argument(
        "--sizes",
        choices=("fit", "enlarge", "strict"),
        default="fit",
        help="when a client asks for a size that the model does not draw: draw the nearest shape, enlarge that to the "
        "size asked for, or refuse (%(default)s)",
    )
    drawing.add_argument("--filter", metavar="MODULE:FUNCTION", help="f(settings, picture or None) -> reason or None")
    keeping = parser.add_argument_group("keeping")
    keeping.add_argument("--keep-days", type=real(0), default=30.0, help="how long pictures stay, 0: always (30)")
    keeping.add_argument(
        "--disk-gb", type=real(above=0), default=10.0, help="most that pictures may take (%(default)s)"
    )
    operation = parser.add_argument_group("operation")
    operation.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a name clients may use")
    operation.add_argument("--drain-seconds", type=real(0), default=60.0, help="to finish pictures in (%(default)s)")
    operation.add_argument("--log-file", help="JSON lines (service.log in --data); - is standard error")
    operation.add_argument("--log-prompts", action="store_true", help="put prompts into the log")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        return _serve(arguments)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "ppvilg":
            raise
        print(f"error: the service needs {error.name}: pip install ppvilg[serve]", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


def _serve(arguments: argparse.Namespace) -> int:
    from ppvilg._versions import DRAWING, check_versions

    if not (arguments.new_key or arguments.revoke_key):
        check_versions(DRAWING)  # here rather than in every worker
    from ppvilg.serving.access.security import is_loopback
    from ppvilg.serving.server import run, run_workers
    from ppvilg.serving.service import Service
    from ppvilg.serving.store.keys import any_keys

    settings = _settings(arguments)
    if arguments.new_key or arguments.revoke_key:
        return _change_keys(arguments, settings)
    worker, picture_filter = _worker(arguments, settings)
    if arguments.worker_only:
        return run_workers(settings, worker, arguments.workers, arguments.drain_seconds)
    service = Service(settings, picture_filter)
    if not is_loopback(arguments.host) and not any_keys(service.store):
        raise ValueError(
            f"{arguments.host} can be reached from other machines, which needs keys: make one with --new-key NAME first"
        )
    return run(service, worker, arguments.workers, arguments.drain_seconds, arguments.redirect)


def _settings(arguments: argparse.Namespace):
    from ppvilg.serving.access.security import is_loopback
    from ppvilg.serving.service import ServiceSettings

    return ServiceSettings(
        model=arguments.model,
        adapters=_offers(arguments.lora),
        data=arguments.data,
        database=arguments.database,
        host=arguments.host,
        port=arguments.port,
        require_key=arguments.require_key or not is_loopback(arguments.host),
        allowed_hosts=tuple(arguments.allow_host),
        strict_sizes=arguments.sizes == "strict",
        enlarge=arguments.sizes == "enlarge",
        keep_days=arguments.keep_days,
        disk_bytes=int(arguments.disk_gb * 2**30),
        log_prompts=arguments.log_prompts,
    )


def _offers(texts: list[str]) -> dict[str, str]:
    """Path by name of --lora. ValueError: a name comes twice, or cannot be one."""
    from ppvilg.serving.model.adapters import parse_offer

    offers = {}
    for name, path in map(parse_offer, texts):
        if name in offers:
            raise ValueError(f"--lora: two adapters have the name {name!r}: write NAME=PATH with other names")
        offers[name] = path
    return offers


def _worker(arguments: argparse.Namespace, settings):
    """Settings of the worker processes, and the filter; the log is open from here on."""
    from ppvilg.serving.logs import log_to
    from ppvilg.serving.model.hooks import load_filter
    from ppvilg.serving.model.info import read_model
    from ppvilg.serving.store import sqlite_url
    from ppvilg.serving.store.folder import DataFolder
    from ppvilg.serving.worker.settings import WorkerSettings

    read_model(arguments.model, settings.adapters)  # what cannot be served is said here, not by every worker
    picture_filter = load_filter(arguments.filter)
    folder = DataFolder(arguments.data)
    log_file = {None: str(arguments.data / "service.log"), "-": None}.get(arguments.log_file, arguments.log_file)
    log_to(log_file)
    worker = WorkerSettings(
        name="",
        model=arguments.model,
        data=str(arguments.data),
        database=settings.database or sqlite_url(folder.database),
        slots=arguments.slots,
        backend=arguments.backend,
        device=arguments.device,
        threads=arguments.threads,
        max_resident_experts=arguments.max_resident_experts,
        keep_seconds=settings.keep_seconds,
        picture_filter=arguments.filter,
        log_file=log_file,
        adapters=settings.adapters,
    )
    return worker, picture_filter


def _change_keys(arguments: argparse.Namespace, settings) -> int:
    from ppvilg.serving.store.keys import new_key, revoke_key

    _, store = settings.open_store()
    if arguments.revoke_key:
        revoke_key(store, arguments.revoke_key)
        print(f"the key {arguments.revoke_key!r} is refused from now on")
    if arguments.new_key:
        ak, sk = new_key(store, arguments.new_key, arguments.pictures_per_day, arguments.requests_per_minute)
        print(f"AK: {ak}\nSK: {sk}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
