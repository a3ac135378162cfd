"""The proxy of `registry/deploy/nginx.conf`, really run, with the addresses of a test in place of its own."""

from __future__ import annotations

import contextlib
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.registry.shared_servers import ROOT
from tests.support.certificates import certificate
from tests.support.programs import needs

NGINX = ROOT / "registry" / "deploy" / "nginx.conf"


@dataclass(frozen=True)
class Proxied:
    """Its three addresses, and its certificate, which clients must know."""

    url: str
    s3: str
    plain: str
    certificate: Path

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.certificate)


@contextlib.contextmanager
def nginx(
    folder: Path, ports: list[int], *servers: str, s3: str, edits: Mapping[str, str] | None = None
) -> Iterator[Proxied]:
    """nginx on three free `ports`, in front of the servers and of S3, each at a URL; `edits` replaces further words."""
    program = needs("nginx")
    (folder / "tls").mkdir(parents=True)
    shutil.copyfile(certificate(folder / "tls" / "fullchain.pem"), folder / "tls" / "privkey.pem")
    text = _configuration(folder, ports, servers, s3)
    for old, new in (edits or {}).items():
        assert old in text
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text)
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"])
    plain, url, links = (
        f"{kind}://localhost:{port}" for kind, port in zip(("http", "https", "https"), ports, strict=True)
    )
    try:
        while True:
            assert process.poll() is None, "nginx did not start"
            with contextlib.suppress(httpx.TransportError):
                httpx.get(plain)
                break
        yield Proxied(url, links, plain, folder / "tls" / "fullchain.pem")
    finally:
        process.terminate()
        process.wait(60)


def _configuration(folder: Path, ports: list[int], servers: tuple[str, ...], s3: str) -> str:
    named = dict(zip(("80", "443", "8443"), ports, strict=True))
    text = NGINX.read_text().replace("/etc/nginx/tls", str(folder / "tls"))
    for number, server in enumerate(servers, start=1):
        text = text.replace(f"registry-{number}:8000", server.removeprefix("http://"))
    text = re.sub(r" *server registry-\d+:8000.*\n", "", text)  # fewer servers than the file has
    text = text.replace("s3:8333", s3.removeprefix("http://"))
    text = re.sub(r"listen (\d+)", lambda port: f"listen 127.0.0.1:{named[port[1]]}", text)
    files = "".join(
        f"{kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = text.replace("http {", f"http {{ access_log off; {files}", 1)
    return f"daemon off; pid {folder / 'pid'}; error_log stderr crit; {text}"
