"""TLS contexts that trust what BuildKit trusts."""

from __future__ import annotations

import ssl


def client_context(ca_file: str = "") -> ssl.SSLContext:
    """Return a context that verifies servers.

    Since 3.13 Python wants key identifiers in every certificate. Those of private authorities
    often have none, and Go does not ask for them.

    Args:
        ca_file: PEM file of the authorities; empty for those of the system.

    Raises:
        OSError: the file is missing or malformed.
    """
    context = ssl.create_default_context(cafile=ca_file or None)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
