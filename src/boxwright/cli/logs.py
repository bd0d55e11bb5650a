"""The program's own log on stderr, as text or as one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
import time


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        text = f'time="{stamp}" level={record.levelname.lower()} msg={record.getMessage()!r}'
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        fields = {
            "time": stamp,
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def configure(level: str, form: str) -> logging.Logger:
    """Send the log to stderr and return the program's logger.

    Args:
        level: debug, info, warn or error.
        form: text or json.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    names = {"debug": logging.DEBUG, "warn": logging.WARNING, "error": logging.ERROR}
    logging.basicConfig(level=names.get(level, logging.INFO), handlers=[handler], force=True)
    return logging.getLogger("boxwright")
