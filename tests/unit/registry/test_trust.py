"""Which certificates are believed."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from boxwright.registry.trust import client_context
from boxwright.testing.certificates import CertificateAuthority


def test_servers_are_verified_but_need_no_key_identifiers(tmp_path: Path) -> None:
    context = client_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    with pytest.raises(OSError, match="No such file"):
        client_context(str(tmp_path / "absent.pem"))


def test_an_authority_of_ones_own_is_the_only_one(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    (trusted,) = client_context(str(authority.ca)).get_ca_certs()
    assert trusted["subject"] == trusted["issuer"]
