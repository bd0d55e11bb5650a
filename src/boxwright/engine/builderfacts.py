"""What the administrator wants every provenance document to say of this builder.

The JSON objects of the files in ``provenanceEnvDir`` (BuildKit's ``provenance.d``), in the order
of their names; a later one's keys win.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from boxwright.config.load import ConfigError

_log = logging.getLogger(__name__)

_MAX_BYTES = 1 << 20


def builder_facts(folder: Path) -> dict[str, Any]:
    """Read the files of a folder; nothing if there is no such folder. Blocks.

    What may not be read is left out, with a warning.

    Raises:
        ConfigError: the folder or a file can't be read, or is no JSON object.
    """
    facts: dict[str, Any] = {}
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
        for path in paths:
            if not path.is_dir():
                facts |= _read(path)
    except FileNotFoundError:
        return facts
    except PermissionError as exc:  # an ordinary user's engine has no say in the machine's folder
        _log.warning("provenance leaves out %s: %s", exc.filename or folder, exc.strerror)
        return {}
    except OSError as exc:
        raise ConfigError(
            f"can't read {exc.filename or folder}", detail=exc.strerror or str(exc)
        ) from exc
    return facts


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    detail = f"more than {_MAX_BYTES} bytes"
    if len(data) <= _MAX_BYTES:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as exc:
            detail = str(exc)
        else:
            if isinstance(value, dict):
                return value
            detail = f"{type(value).__name__} instead of an object"
    raise ConfigError(
        f"{path} is not a JSON object",
        detail=detail,
        hint="provenanceEnvDir holds what provenance documents say of this builder",
    )
