"""TLS for both roles: ALPN ``h2``, client certificates, renewal without a restart."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

from boxwright.core.dataclass import dataclass
from boxwright.errors import BoxwrightError, Code

_log = logging.getLogger(__name__)


class TlsConfigError(BoxwrightError):
    """A certificate, key or CA file that can't be used."""

    code = Code.CONFIG


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """Files of one side, all PEM.

    Attributes:
        ca: client: what the server's certificate must chain to, system roots if None;
            server: what client certificates must chain to, none are asked for if None.
        cert: our certificate chain; required for a server.
        key: its private key.
        server_name: client: the name to verify instead of the address's host.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def _files(self) -> list[Path]:
        return [path for path in (self.ca, self.cert, self.key) if path is not None]


def _load(context: ssl.SSLContext, options: TlsOptions) -> None:
    for path in options._files():  # noqa: SLF001
        if not os.access(path, os.R_OK):
            raise TlsConfigError(
                f"can't read TLS file {path}",
                hint="check that it exists and that this user may read it",
            )
    try:
        if options.ca is not None:
            context.load_verify_locations(cafile=options.ca)
        if options.cert is not None:
            context.load_cert_chain(options.cert, options.key)
    except (ssl.SSLError, OSError) as exc:
        names = ", ".join(map(str, options._files()))  # noqa: SLF001
        raise TlsConfigError(f"can't load TLS files {names}", detail=str(exc)) from exc


def client_context(options: TlsOptions) -> ssl.SSLContext:
    """Return a context that verifies the server.

    Raises:
        TlsConfigError: a file is missing or malformed.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    if options.ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    _load(context, options)
    return context


def _server_context(options: TlsOptions) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    _load(context, options)
    if options.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class ServerTls:
    """A server context that follows its files: each handshake uses the newest set.

    A set that fails to load is logged once and the former one stays in use.
    """

    def __init__(self, options: TlsOptions) -> None:
        if options.cert is None or options.key is None:
            raise TlsConfigError("a TLS listener needs a certificate and a key")
        self._options = options
        self._stamp: tuple[tuple[int, int, int], ...] = ()  # differs: the first handshake reloads
        self._current = _server_context(options)
        self.context = _server_context(options)
        self.context.sni_callback = self._choose

    def _read_stamp(self) -> tuple[tuple[int, int, int], ...]:
        stats = [os.stat(path) for path in self._options._files()]  # noqa: SLF001
        return tuple((st.st_ino, st.st_mtime_ns, st.st_size) for st in stats)

    def _choose(
        self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext
    ) -> None:
        del name, context
        try:
            stamp = self._read_stamp()
            if stamp != self._stamp:
                self._stamp = stamp
                self._current = _server_context(self._options)
                _log.info("loaded TLS certificates")
        except (TlsConfigError, OSError) as exc:
            _log.error("keeping the former TLS certificates: %s", exc)
        connection.context = self._current
