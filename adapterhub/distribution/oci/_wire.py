"""HTTP with one OCI registry: the requests of the distribution spec, and tokens by its challenge.

A registry answers 401 and says where a token is to be had. The token goes to the registry alone, never along a
redirect, and the user's password goes to the place that the registry names. Both travel encrypted, but to this machine.

Sources: OCI distribution spec v1.1, the token and OAuth 2 flows of Docker's registry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

from huggingface_hub.errors import HfHubHTTPError

from adapterhub.core.digests import Digest, digest_of, parse_digest, strict_json
from adapterhub.core.errors import DigestMismatch, RemoteUnreachable, shown
from adapterhub.core.redaction import keep_secret
from adapterhub.distribution.http.wire import Answer, Form, Wire, is_missing, origin_of, web_address
from adapterhub.distribution.oci._credentials import Credentials
from adapterhub.distribution.oci._image import ACCEPTED, IMAGE_TYPE, MANIFEST_LIMIT_BYTES, Blob

_REPOSITORY: Final = re.compile(r"/v2/(.+)/(?:blobs|manifests|tags|referrers)/")
_PARAMETER: Final = re.compile(r'([a-z_]+)="([^"\\]*)"')
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,65536}")
_NEXT: Final = re.compile(r'\s*<([^<>]*)>\s*;.*\brel="?next\b')
_CLIENT: Final = "adapterhub"
MOST_PAGES: Final = 100


class OciWire(Wire):
    """Requests to one registry. `endpoint` is its URL."""

    def __init__(self, endpoint: str, credentials: Credentials, *, silence_s: float | None = None) -> None:
        super().__init__(endpoint, None, version=None, silence_s=silence_s)
        keep_secret(f"{credentials.user}:{credentials.password}" if credentials.user else None)
        keep_secret(credentials.password, credentials.bearer, credentials.refresh)
        self._credentials = credentials
        self._granted: dict[tuple[str, bool], str] = {}

    @property
    def is_signed_in(self) -> bool:
        """Whether there are credentials."""
        return self._credentials != Credentials()

    # ------------------------------------------------------------ tokens
    def open(
        self, url: str, headers: Mapping[str, str] | None = None, form: Form | None = None, method: str = ""
    ) -> Answer:
        """As `Wire.open`, with a token where the registry wants one; a file is sent once, so its token comes before."""
        found = _REPOSITORY.search(url)
        what = found[1] if found else "", form is not None or method not in ("", "GET", "HEAD")
        granted = self._granted.get(what) or self._granted.get((what[0], True), "")
        sent = dict(headers or {})
        answer = super().open(url, sent | ({"authorization": granted} if granted else {}), form, method)
        is_own = origin_of(answer.url) == origin_of(self.endpoint)
        if answer.status != HTTPStatus.UNAUTHORIZED or not is_own or (form and not isinstance(form, bytes)):
            return answer
        granted = self._grant(answer.headers.get("www-authenticate", ""), what[0], writes=what[1])
        if not granted:
            return answer
        answer.close()
        self._granted[what] = granted
        return super().open(url, sent | {"authorization": granted}, form, method)

    def _grant(self, challenge: str, repository: str, *, writes: bool) -> str:
        """The header that answers a challenge; "" where nothing does.

        Raises:
            RemoteUnreachable: the challenge cannot be followed, or its place gives no token.
            NotAllowed: its place refuses the user.
        """
        own = self._credentials
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            return own.basic
        if scheme.lower() != "bearer":
            return ""
        if own.bearer:
            return f"Bearer {own.bearer}"
        told = dict(_PARAMETER.findall(rest))
        realm = web_address(self.endpoint, told.get("realm", ""))
        if not realm or "realm" not in told or "@" in realm.partition("://")[2].partition("/")[0]:
            raise RemoteUnreachable(f"{self.endpoint} wants a token from `{shown(told.get('realm'))}`, no web address")
        if self.endpoint.startswith("https:") and not realm.startswith("https:"):
            raise RemoteUnreachable(
                f"{self.endpoint} wants a token from `{shown(realm)}`, unencrypted. Nothing was sent"
            )
        scope = f"repository:{repository}:{'pull,push' if writes else 'pull'}" if repository else told.get("scope", "")
        asked = {"service": told.get("service", ""), "scope": scope}
        asked = {key: value for key, value in asked.items() if value}
        with self.plainly(f"token for `{repository or self.endpoint}`"):
            return f"Bearer {self._token(realm, asked)}"

    def _token(self, realm: str, asked: dict[str, str]) -> str:
        own, form = self._credentials, None
        if own.refresh:
            form = {**asked, "grant_type": "refresh_token", "client_id": _CLIENT, "refresh_token": own.refresh}
            answer = super().open(realm, form=form)
        else:
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(asked)}"
            answer = super().open(url, {"authorization": own.basic} if own.basic else {})
        try:
            answer.raise_for_status()
            raw = self.whole(answer, "token")
        finally:
            answer.close()
        try:
            told = strict_json(raw)
            token = told.get("token") or told.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise RemoteUnreachable(f"`{shown(realm)}` sent no token")
        keep_secret(token)
        return token

    # ------------------------------------------------------------ manifests and blobs
    def manifest(self, repository: str, reference: str, accept: str = ACCEPTED) -> tuple[bytes, Digest] | None:
        """The bytes of a manifest by its tag or digest, and their digest; None if there is none.

        Raises:
            DigestMismatch: the bytes are not those of the digest.
            RemoteUnreachable: they are more than any manifest has.
        """
        what = f"{repository}: manifest `{reference}`"
        try:
            with self.answering(f"{self.endpoint}/v2/{repository}/manifests/{reference}", {"accept": accept}) as answer:
                raw, told = self.whole(answer, what), answer.headers.get("docker-content-digest")
        except HfHubHTTPError as error:
            if is_missing(error):
                return None
            raise
        if len(raw) > MANIFEST_LIMIT_BYTES:
            raise RemoteUnreachable(f"{what}: {self.endpoint} sent more than {MANIFEST_LIMIT_BYTES:,} bytes")
        actual = digest_of(raw)
        expected = reference if reference.startswith("sha256:") else told or actual
        if expected.startswith("sha256:") and actual != expected:
            raise DigestMismatch(what, expected=shown(expected), actual=actual, hint="nothing was stored")
        return raw, actual

    def put_manifest(self, repository: str, reference: str, raw: bytes, media_type: str = IMAGE_TYPE) -> Answer:
        """Store a manifest under a tag or its digest; the answer, without its body."""
        url = f"{self.endpoint}/v2/{repository}/manifests/{reference}"
        with self.answering(url, {"content-type": media_type}, raw, "PUT") as answer:
            return answer

    def blob(self, repository: str, blob: Blob, limit_bytes: int) -> bytes:
        """A small blob, whole.

        Raises:
            DigestMismatch: its bytes are others.
            RemoteUnreachable: it has more than `limit_bytes`.
        """
        what = f"{repository}: blob {blob.digest[:19]}…"
        if blob.size_bytes > limit_bytes:
            raise RemoteUnreachable(f"{what}: has {blob.size_bytes:,} bytes, expected at most {limit_bytes:,}")
        raw = self.get(blob_path(repository, blob.digest))
        if digest_of(raw) != blob.digest:
            raise DigestMismatch(what, expected=blob.digest, actual=digest_of(raw), hint="nothing was stored")
        return raw

    def has_blob(self, repository: str, digest: Digest) -> bool:
        """Whether the repository has a blob."""
        answer = self.open(f"{self.endpoint}/{blob_path(repository, digest)}", method="HEAD")
        answer.close()
        return answer.status == HTTPStatus.OK

    def put_blob(self, repository: str, digest: Digest, size_bytes: int, body: Form) -> None:
        """Send a blob that the repository lacks, in one request; the registry checks its digest.

        Raises:
            RemoteUnreachable: the registry names no place to send it to, or an unencrypted one.
        """
        begin = f"{self.endpoint}/v2/{repository}/blobs/uploads/"
        with self.answering(begin, {"content-length": "0"}, b"", "POST") as answer:
            place = answer.headers.get("location", "")
        target = web_address(begin, place) if place else ""
        if not target or (begin.startswith("https:") and not target.startswith("https:")):
            raise RemoteUnreachable(f"{self.endpoint} names `{shown(place)}` to upload to. Nothing was sent there")
        headers = {"content-type": "application/octet-stream", "content-length": str(size_bytes)}
        url = f"{target}{'&' if '?' in target else '?'}{urlencode({'digest': digest})}"
        # another origin is a storage with a signed address: the token stays here
        send = self.open if origin_of(target) == origin_of(self.endpoint) else super().open
        answer = send(url, headers, body, "PUT")
        try:
            answer.raise_for_status()
        finally:
            answer.close()

    # ------------------------------------------------------------ lists
    def pages(self, path: str, accept: str = "application/json") -> Iterator[bytes]:
        """Each page of a list, at most `MOST_PAGES`; ends where there is no such list."""
        url = f"{self.endpoint}/{path}"
        for _ in range(MOST_PAGES):
            try:
                with self.answering(url, {"accept": accept}) as answer:
                    raw, link = self.whole(answer, path), answer.headers.get("link", "")
            except HfHubHTTPError as error:
                if is_missing(error):
                    return
                raise
            yield raw
            found = _NEXT.match(link)
            if found is None:
                return
            url = web_address(url, found[1])
            if not url or origin_of(url) != origin_of(self.endpoint):
                raise RemoteUnreachable(f"`{shown(path)}`: {self.endpoint} continues at `{shown(found[1])}`, elsewhere")
        raise RemoteUnreachable(f"`{shown(path)}`: {self.endpoint} sent more than {MOST_PAGES} pages")


def blob_path(repository: str, digest: Digest) -> str:
    """The URL path of a blob."""
    return f"v2/{repository}/blobs/{parse_digest(digest)}"
