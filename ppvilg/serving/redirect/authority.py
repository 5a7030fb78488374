"""A certificate authority that can speak for two hosts and no other, and the certificate of the service under it."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import certifi
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ppvilg.files import write_whole

from .proxy import HOSTS

_DAYS = 365
_RENEW = datetime.timedelta(days=30)


class Certificates:
    """Files in a folder, made on first use and again a month before they expire.

    bundle.pem: what a client is to trust, in REQUESTS_CA_BUNDLE: certifi's authorities, whose place the variable takes,
    and ours. ca.key: readable by its user alone; the authority's name constraint makes it useless for other hosts.
    """

    def __init__(self, folder: Path) -> None:
        self.bundle, self.chain, self.key = (folder / name for name in ("bundle.pem", "server.pem", "server.key"))
        self._ca, self._ca_key = folder / "ca.pem", folder / "ca.key"
        folder.mkdir(parents=True, exist_ok=True)
        if not self._is_good():
            self._make()

    def _is_good(self) -> bool:
        files = (self.bundle, self.chain, self.key, self._ca, self._ca_key)
        if not all(file.is_file() for file in files):
            return False
        end = x509.load_pem_x509_certificate(self.chain.read_bytes()).not_valid_after_utc
        return end - datetime.datetime.now(datetime.timezone.utc) > _RENEW

    def _make(self) -> None:
        ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ppvilg on this machine")])
        constraint = x509.NameConstraints([x509.DNSName(host) for host in HOSTS], None)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # signs certificates
        ca = (
            _dated(name, name, ca_key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(constraint, critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        server = (
            _dated(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOSTS[0])]), name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        for path, private in ((self._ca_key, ca_key), (self.key, key)):
            _write_private(path, private)
        write_whole(self._ca, ca.public_bytes(pem))
        write_whole(self.chain, server.public_bytes(pem))
        write_whole(self.bundle, Path(certifi.where()).read_bytes() + b"\n" + ca.public_bytes(pem))


def _dated(subject: x509.Name, issuer: x509.Name, public_key) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
    )


def _write_private(path: Path, key) -> None:
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
