"""nginx for the tests, with the configurations in docs/deployment.md and docs/scaling.md."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.processes import ROOT, free_port, running

NAME = "chat.example.com"

MAIN = """
{user}daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{block}
}}
"""
"""nginx.conf around the documented block, as on a real system."""


@dataclass(frozen=True)
class Nginx:
    """A running nginx. certificate: the certificate that clients must trust; None without HTTPS."""

    url: str
    http_port: int
    certificate: Path | None


def documented_block(page: str, section: str) -> str:
    """Return the configuration in a section of a page in docs/."""
    text = (ROOT / "docs" / page).read_text()
    match = re.search(rf"^## {section}$.*?^```nginx\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert match
    return match[1]


def replace(text: str, old: str, new: str) -> str:
    assert old in text, f"{old!r} is not in the documented lines"
    return text.replace(old, new)


@contextmanager
def running_nginx(kind: str, folder: Path, upstream: str) -> Iterator[Nginx]:
    """Run nginx with the configuration of docs/deployment.md, on ports and with files of the test.

    :param kind: ``HTTP`` or ``HTTPS``.
    :param upstream: target of ``proxy_pass``.
    """
    block = documented_block("deployment.md", f"nginx, {kind}")
    block = replace(block, "http://127.0.0.1:8080", upstream)
    certificate = None
    if kind == "HTTPS":
        folder.mkdir()
        port = free_port()
        certificate, key = make_certificate(folder)
        block = replace(block, "listen 443 ", f"listen {port} ")
        block = replace(block, f"/etc/ssl/{NAME}.pem", str(certificate))
        block = replace(block, f"/etc/ssl/{NAME}.key", str(key))
    with running_block(block, folder) as nginx:
        url = nginx.url if certificate is None else f"https://{NAME}:{port}"
        yield Nginx(url, nginx.http_port, certificate)


@contextmanager
def running_block(block: str, folder: Path) -> Iterator[Nginx]:
    """Run nginx with a configuration, on a port of the test instead of 80."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is missing: apt-get install nginx")
    folder.mkdir(exist_ok=True)
    http_port = free_port()
    block = replace(block, "listen 80;", f"listen {http_port};")
    user = "user root;\n" if os.geteuid() == 0 else ""  # so that the workers can read the test's folder
    (folder / "nginx.conf").write_text(MAIN.format(user=user, folder=folder, block=block))
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    with running(command, folder / "output") as process:
        process.wait_for(lambda: listens(http_port), "listening nginx")
        assert "[emerg]" not in process.err
        assert "[warn]" not in process.err, process.err
        yield Nginx(f"http://{NAME}:{http_port}", http_port, None)


def listens(port: int) -> bool:
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Create a self-signed certificate for the documented host name, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, key_file = folder / "certificate.pem", folder / "certificate.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, key_file
