"""The log: one JSON object a line, without prompts unless asked, without tokens and secrets ever."""

from __future__ import annotations

import json
import logging
import logging.handlers
import time

_ROOT = "ppvilg.serving"
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JsonLines(logging.Formatter):
    """A record as JSON: time (UTC), level, logger, message, and what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in _OWN},
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to(file: str | None) -> None:
    """Sends the service's log to a file, or to standard error for None.

    Processes share the file, so it is not rotated here but followed when something else (logrotate) moves it away.
    """
    handler = logging.StreamHandler() if file is None else logging.handlers.WatchedFileHandler(file, encoding="utf-8")
    handler.setFormatter(JsonLines())
    logger = logging.getLogger(_ROOT)
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
