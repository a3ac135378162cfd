"""HTTP with one server: the requests that the Hub's client has no call for, and clear messages for all its errors.

The session is the Hub client's, so the user's proxies, certificates and offline mode apply. Redirects are followed
here, so that the token goes only to its own server.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlencode, urljoin, urlsplit
from urllib.request import getproxies

from huggingface_hub import __version__ as hub_version
from huggingface_hub import constants, get_session, set_client_factory
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # public, not re-exported

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import (
    AdapterHubError,
    AdapterNotFound,
    Conflict,
    DigestMismatch,
    DiskFull,
    NotAllowed,
    RemoteUnreachable,
    SpecError,
    shown,
)
from adapterhub.core.redaction import keep_secret

HttpError: type[BaseException] = HfHubHTTPError.__mro__[1]
"""The root error of the Hub client's HTTP library: httpx or httpx2, depending on the version."""
_InvalidUrl: type[Exception] = sys.modules[HttpError.__module__.partition(".")[0]].InvalidURL

CONNECT_S, SILENCE_S = 5.0, 30.0

MAX_REDIRECTS = 5
MAX_SMALL_BYTES = 16 << 20
MAX_ERROR_BYTES = 64 << 10
LEAST_BYTES_A_SECOND = 1024
"""A server that is slower than this over `silence_s` counts as silent."""

_REDIRECTS = (301, 302, 303, 307, 308)
PASSING = (408, 429, 500, 502, 503, 504)
"""Temporary failures."""

LONGEST_PAUSE_S = 30.0


HttpObject = Any
"""A client, request or response of the HTTP library that the Hub's client uses."""

JsonValue = Any
"""Any JSON value."""

Form = Mapping[str, Any] | bytes | Iterable[bytes]
"""What a POST sends: the fields of a form, JSON, or pieces of a file, whose headers say their type and number."""


class HttpAnswer:
    """One response: status, headers (lower-case names), and the body in chunks."""

    def __init__(self, response: HttpObject, *, silence_s: float = SILENCE_S) -> None:
        self._response = response
        self._silence_s = silence_s
        self.status = int(response.status_code)
        self.headers = {str(name).lower(): str(value) for name, value in response.headers.items()}

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes as they arrive.

        Raises:
            TimeoutError: they arrive too slowly; one byte a second would never trigger the timeout for silence.
        """
        waited, came = 0.0, 0
        pieces = self._response.iter_raw()
        while True:
            asked = time.monotonic()
            piece = next(pieces, None)
            if piece is None:
                return
            waited += time.monotonic() - asked  # our own time between two pieces does not count
            came += len(piece)
            if waited >= self._silence_s:
                if came < LEAST_BYTES_A_SECOND * waited:
                    raise TimeoutError(f"only {came:,} bytes came in {waited:.3g} s")
                waited, came = 0.0, 0
            yield piece

    @property
    def url(self) -> str:
        """The address that answered, after all redirects."""
        return str(self._response.request.url)

    @property
    def packing(self) -> str:
        """The compression of the body, such as `gzip`; "" if there is none."""
        told = self.headers.get("content-encoding", "").strip().lower()
        return "" if told == "identity" else told

    def close(self) -> None:
        """Give the connection back."""
        self._response.close()

    def raise_for_status(self) -> None:
        """Raise the Hub client's error for a status of 400 or more."""
        if self.status >= HTTPStatus.BAD_REQUEST:
            hf_raise_for_status(self._with_short_body())

    def _with_short_body(self) -> HttpObject:
        """Return the response with the beginning of its body, for the error message; empty if compressed or cut off."""
        body = bytearray()
        with contextlib.suppress(HttpError, OSError):
            for piece in () if self.packing else self.chunks():
                body += piece
                if len(body) >= MAX_ERROR_BYTES:
                    break
        response = self._response
        kept = {n: v for n, v in self.headers.items() if n not in ("content-encoding", "content-length")}
        kept.pop("transfer-encoding", None)
        return type(response)(self.status, headers=kept, content=bytes(body), request=response.request)

    @property
    def pause_s(self) -> float:
        """How long to wait, from Retry-After."""
        text = self.headers.get("retry-after", "")
        return min(float(text), LONGEST_PAUSE_S) if text.isascii() and text.isdigit() else 0.0


def _is_of_the_client(error: BaseException) -> bool:
    """Return whether the error is from the Hub's client, which does not check responses, and not from our own code."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and str(place.tb_frame.f_globals.get("__name__")).startswith("huggingface_hub.")


class Wire:
    """Requests to one server, with its token."""

    def __init__(
        self,
        endpoint: str,
        token: str | None,
        *,
        version: str | None,
        silence_s: float | None = None,
        client: HttpObject = None,
    ) -> None:
        """`silence_s`: how long to wait for the next byte, and for a connection if shorter than `CONNECT_S`.

        `client` replaces the session that the whole process shares, which anyone may close during a long request.
        """
        keep_secret(token)
        self.endpoint = endpoint
        self._own_client = client
        self.ahead = Ahead(endpoint, HttpError.__module__.partition(".")[0])
        self.silence_s = SILENCE_S if silence_s is None else silence_s
        self.received_bytes = 0
        self._headers = {
            "user-agent": user_agent(version),
            **({"authorization": f"Bearer {token}"} if token else {}),
            # packed bytes have no ranges, and are not those that were hashed
            "accept-encoding": "identity",
        }

    # ------------------------------------------------------------ requests
    def open(
        self, url: str, headers: Mapping[str, str] | None = None, form: Form | None = None, method: str = ""
    ) -> HttpAnswer:
        """Return the response to a GET (a POST with `form`), after at most five redirects; the caller closes it.

        Raises:
            RemoteUnreachable: an invalid, endless or unencrypted redirect, or a compressed response.
        """
        sent = self._headers | dict(headers or {})
        for _ in range(MAX_REDIRECTS + 1):
            answer = HttpAnswer(self._send(url, sent, form, method), silence_s=self.silence_s)
            if answer.status not in _REDIRECTS or "location" not in answer.headers:
                if answer.status < HTTPStatus.BAD_REQUEST and answer.packing:
                    answer.close()
                    packing = shown(answer.packing, 40)
                    raise RemoteUnreachable(f"{self.endpoint} sent compressed bytes (`{packing}`), expected plain ones")
                return answer
            answer.close()
            if form is not None:
                raise RemoteUnreachable(f"{self.endpoint} redirected a {method or 'POST'} request")
            target = web_address(url, answer.headers["location"])
            if not target:
                place = shown(answer.headers["location"])
                raise RemoteUnreachable(f"{self.endpoint} led to `{place}`, which is not a web address")
            if url.startswith("https:") and target.startswith("http:"):
                raise unencrypted(self.endpoint, target)
            if origin_of(target) != origin_of(self.endpoint):
                sent = {name: value for name, value in sent.items() if name.lower() != "authorization"}
            url = target
        raise RemoteUnreachable(f"{self.endpoint} redirected more than {MAX_REDIRECTS} times")

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> bytes:
        """Return a small body, whole, checked against the server's digest; raises the Hub client's errors.

        A list among `params` becomes one parameter for each item.
        """
        if params:
            path += "?" + urlencode(params, doseq=True, quote_via=quote)
        if (told := self.ahead.told(path)) is not None:
            return told
        with self.answering(f"{self.endpoint}/{path}") as answer:
            return self.whole(answer, path)

    def json(self, path: str, params: Mapping[str, Any] | None = None, *, form: Form | None = None) -> JsonValue:
        """Return the JSON value of a small response, to a POST if there is a `form`; raises the errors of `get`.

        Raises:
            RemoteUnreachable: it is not JSON, or nested too deeply.
        """
        if form is None:
            raw = self.get(path, params)
        elif (told := self.ahead.told(path)) is not None:
            raw = told
        else:
            with self.answering(f"{self.endpoint}/{path}", form=form) as answer:
                raw = self.whole(answer, path)
        try:
            return strict_json(raw, limit_bytes=MAX_SMALL_BYTES)
        except ValueError as error:
            reason = shown(str(error), 160)
            raise RemoteUnreachable(f"`{shown(path)}`: {self.endpoint} sent no valid JSON: {reason}") from None

    def put(self, path: str, body: bytes, method: str = "PUT") -> None:
        """Send JSON by PUT, or another `method`; raises the Hub client's errors."""
        with self.answering(f"{self.endpoint}/{path}", form=body, method=method) as answer:
            self.whole(answer, path)

    def get_range(self, path: str, start: int, end: int) -> bytes:
        """Return the bytes `[start, end)` of a file, fewer if it ends earlier; reads nothing beyond them.

        A beginning of the file that was fetched ahead counts as all of it: it ends where the header does.
        """
        if start == 0 and (told := self.ahead.told(f"{path}#head")) is not None:
            return told[:end]
        with self.answering(f"{self.endpoint}/{path}", {"Range": f"bytes={start}-{end - 1}"}) as answer:
            skip = 0 if answer.status == HTTPStatus.PARTIAL_CONTENT else start
            found = bytearray()
            for chunk in answer.chunks():
                self.received_bytes += len(chunk)
                found += chunk
                if len(found) >= skip + end - start:
                    break
            return bytes(found[skip : skip + end - start])

    @contextlib.contextmanager
    def answering(
        self, url: str, headers: Mapping[str, str] | None = None, form: Form | None = None, method: str = ""
    ) -> Iterator[HttpAnswer]:
        """Provide a successful response for the duration of a block; retries once after a temporary failure."""
        answer = self.open(url, headers, form, method)
        if answer.status in PASSING:
            answer.close()
            time.sleep(min(answer.pause_s or 0.5, self.silence_s))
            answer = self.open(url, headers, form, method)
        try:
            answer.raise_for_status()
            yield answer
        finally:
            answer.close()

    def whole(self, answer: HttpAnswer, what: str) -> bytes:
        """Return the body of a small response, checked against the server's digest.

        Raises:
            RemoteUnreachable: it is more than `MAX_SMALL_BYTES`.
        """
        body = bytearray()
        for chunk in answer.chunks():
            self.received_bytes += len(chunk)
            body += chunk
            if len(body) > MAX_SMALL_BYTES:
                raise RemoteUnreachable(f"`{shown(what)}`: more than {MAX_SMALL_BYTES} bytes, expected a small file")
        check_etag(bytes(body), answer.headers, what)
        return bytes(body)

    def _client(self) -> HttpObject:
        """Return the Hub's client, which uses the proxies of the environment.

        Raises:
            RemoteUnreachable: a proxy is invalid.
        """
        try:
            return self._own_client or get_session()
        except AdapterHubError:
            raise
        except Exception as error:  # noqa: BLE001 - httpx raises ImportError, ValueError, and an InvalidURL of its own
            raise unusable_proxy(error) from None

    def _send(self, url: str, headers: Mapping[str, str], form: Form | None, method: str) -> HttpObject:
        session = self._client()
        method = method or ("GET" if form is None else "POST")
        connect_s = min(CONNECT_S, self.silence_s)
        times = (connect_s, self.silence_s, self.silence_s, connect_s)  # connect, read, write, pool
        sent = {"content-type": "application/json", **headers} if isinstance(form, bytes) else dict(headers)
        body: dict[str, Any] = {"data" if form is None or isinstance(form, Mapping) else "content": form}
        try:
            request = session.build_request(method, url, headers=sent, timeout=times, **body)
        except Exception as error:  # noqa: BLE001 - httpx's InvalidURL is no child of its other errors
            raise RemoteUnreachable(f"{self.endpoint}: `{shown(url)}` is not an address: {shown(str(error))}") from None
        try:
            return session.send(request, stream=True, follow_redirects=False)
        except _InvalidUrl:  # httpx looks at the target of a redirect, although it does not follow it
            raise RemoteUnreachable(f"{self.endpoint} led to something that is not a web address") from None

    # ------------------------------------------------------------ words
    @contextlib.contextmanager
    def plainly(self, what: str) -> Iterator[None]:
        """Turn the client's errors into one clear line."""
        try:
            yield
        except GatedRepoError:
            raise NotAllowed(
                f"{what}: request access at {self.endpoint}", hint="accept its terms there, then run the command again"
            ) from None
        except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
            raise AdapterNotFound(
                f"{what}: not found on {self.endpoint}, or private and no token given",
                hint="`adapt remote login NAME` or ADAPTERHUB_TOKEN gives a token",
            ) from None
        except HFValidationError as error:
            raise SpecError(what, shown(str(error), 160)) from None
        except OfflineModeIsEnabled:
            raise RemoteUnreachable(
                f"{what}: the hub client is in offline mode (HF_HUB_OFFLINE)", hint="unset HF_HUB_OFFLINE"
            ) from None
        except HfHubHTTPError as error:
            raise self._answered(what, error) from None
        except (HttpError, OSError) as error:
            raise self._unreached(what, error) from None
        except (RuntimeError, ValueError) as error:
            raise self._wrapped(what, error) from None
        except (LookupError, TypeError, AttributeError) as error:
            if not _is_of_the_client(error):
                raise
            reason = shown(repr(error), 160)
            raise RemoteUnreachable(
                f"{what}: {self.endpoint} sent a response that the client cannot read: {reason}"
            ) from None

    def _unreached(self, what: str, error: BaseException) -> RemoteUnreachable:
        return RemoteUnreachable(
            f"{what}: {self.endpoint} could not be reached: {shown(str(error) or type(error).__name__, 160)}",
            hint="`--offline` uses what is here; `adapt doctor` checks the connection",
        )

    def _wrapped(self, what: str, error: BaseException) -> AdapterHubError:
        """Return the error behind a RuntimeError, in which the client wraps failed uploads; Xet raises only these."""
        cause = error.__cause__
        if isinstance(cause, AdapterHubError):
            return cause
        if isinstance(cause, HfHubHTTPError):
            return self._answered(what, cause)
        if isinstance(cause, HttpError | OSError):
            return self._unreached(what, cause)
        return RemoteUnreachable(f"{what}: {self.endpoint}: {shown(str(error), 160)}")

    def _answered(self, what: str, error: HfHubHTTPError) -> AdapterHubError:
        status = error.response.status_code if error.response is not None else 0
        code = "" if error.response is None else error.response.headers.get("X-Error-Code")
        if code == "TestsRequired":
            hint = "`adapt test NAME --sign --key NAME` signs a result, which the next push includes"
            return NotAllowed(f"{what}: {self.endpoint}: {shown(error.server_message, 400)}", hint=hint)
        if code == "QuotaExceeded":
            hint = "delete repositories that you no longer need there, or ask its administrator for more space"
            return DiskFull(f"{what}: {self.endpoint}: {shown(error.server_message, 300)}", hint=hint)
        text = f"{what}: {self.endpoint} answered {status}: {shown(error.server_message or str(error), 300)}"
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            hint = "`adapt remote login NAME` or ADAPTERHUB_TOKEN gives a token with this right"
            return NotAllowed(text, hint=hint)
        if status == HTTPStatus.CONFLICT:
            return Conflict(text, hint="a published release never changes; publish under another version or name")
        if status == HTTPStatus.PRECONDITION_FAILED:
            return Conflict(text, hint="someone published at the same time; check, then try again")
        wait = "; wait and try again" if status == HTTPStatus.TOO_MANY_REQUESTS else ""
        return RemoteUnreachable(text + wait, status=status or None)


def user_agent(version: str | None) -> str:
    """Return the Hub client's name for itself; its own function for that takes 40 ms to import."""
    origin = [f"origin/{constants.HF_HUB_USER_AGENT_ORIGIN}"] if constants.HF_HUB_USER_AGENT_ORIGIN else []
    python = sys.version.split()[0].rstrip("+")
    return "; ".join([f"adapterhub/{version}", f"hf_hub/{hub_version}", f"python/{python}", *origin])


def is_missing(error: BaseException) -> bool:
    """Return whether the server responded with 404."""
    return (
        isinstance(error, HfHubHTTPError)
        and error.response is not None
        and error.response.status_code == HTTPStatus.NOT_FOUND
    )


def file_path(repo: str, commit: str, name: str) -> str:
    """Return the URL path of a file in a repository."""
    return f"{repo}/resolve/{quote(commit, safe='')}/{quote(name)}"


def unencrypted(what: str, target: str) -> RemoteUnreachable:
    """Return the error for a redirect from https to http."""
    return RemoteUnreachable(f"{what} redirected from https to `{shown(target)}`. Nothing was sent there")


def unusable_proxy(error: Exception) -> RemoteUnreachable:
    """Return the error for an invalid proxy in the environment; it leaves out the URL, which may hold a password."""
    names = ", ".join(f"{scheme.upper()}_PROXY" for scheme in sorted(getproxies()) if scheme != "no")
    if isinstance(error, ImportError):
        reason, hint = "SOCKS needs a package that is not installed", "run `pip install socksio`"
    else:
        reason, hint = "it is not the address of a proxy", "expected one such as http://proxy.example:3128"
    return RemoteUnreachable(
        f"the proxy that the environment names ({names or 'ALL_PROXY'}) cannot be used: {reason}. Nothing was sent",
        hint=f"{hint}, or unset it",
    )


def origin_of(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port of a URL: a token is sent to only one origin."""
    place = urlsplit(url)
    return place.scheme, (place.hostname or "").lower(), place.port or {"http": 80, "https": 443}.get(place.scheme)


def web_address(url: str, location: str) -> str:
    """Return the target of a redirect; "" if it is not a web address."""
    try:
        target = urljoin(url, location)
        place = urlsplit(target)
        is_web = place.scheme in ("http", "https") and bool(place.hostname) and place.port != 0
    except ValueError:
        return ""
    return target if is_web and target.isascii() and target.isprintable() else ""


def check_etag(body: bytes, headers: Mapping[str, str], what: str) -> None:
    """Check a file against the digest in its ETag: the git blob's sha1, or the sha256 of an LFS file.

    Raises:
        DigestMismatch: the bytes differ from the digest.
    """
    etag = headers.get("x-linked-etag", headers.get("etag", "")).removeprefix("W/").strip('"')
    if not all(c in "0123456789abcdef" for c in etag):
        return
    if len(etag) == 64:
        actual = hashlib.sha256(body).hexdigest()
    elif len(etag) == 40 and "x-repo-commit" in headers:
        actual = git_sha1(body)
    else:
        return
    if actual != etag:
        raise DigestMismatch(what, expected=etag, actual=actual, hint="nothing was stored; try again")


def git_sha1(body: bytes) -> str:
    """Return the git blob hash of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()


class Ahead:
    """What one server answered, by path and query: a body, or the code of its error."""

    def __init__(self, endpoint: str, http: str) -> None:
        """`http` names the HTTP library of the Hub's client."""
        self._endpoint, self._http = endpoint, http
        self._answers: dict[str, bytes | str] = {}

    def take(self, answers: Mapping[str, bytes | str]) -> None:
        """Keep some answers."""
        self._answers |= answers

    def forget(self) -> None:
        """Drop what may be old soon: all but files at commits."""
        self._answers = {path: told for path, told in self._answers.items() if _is_fixed(path)}

    def knows(self, path: str) -> bool:
        """Return whether `told` has an answer."""
        return path in self._answers

    def told(self, path: str) -> bytes | None:
        """Return the body for a request; None if none came. Raises the error of the Hub's client that the answer is.

        Files at a commit never change, so they stay; all else counts once.
        """
        told = self._answers.get(path) if _is_fixed(path) else self._answers.pop(path, None)
        if isinstance(told, str):
            http = sys.modules[self._http]
            request = http.Request("GET", f"{self._endpoint}/{path}")
            hf_raise_for_status(http.Response(HTTPStatus.NOT_FOUND, headers={"X-Error-Code": told}, request=request))
        return told if isinstance(told, bytes) else None


def _is_fixed(path: str) -> bool:
    return "/resolve/" in path


VERIFYING_S = 300.0
"""How long to wait for the next byte: a server reads a whole push before it responds."""

_MOST: Final = "adapterhub.most_bytes"
_HTTP: Any = sys.modules[HttpError.__module__.partition(".")[0]]
_WAIT_S: list[float] = []
_BOUNDING: Final = threading.Lock()


def bound_client(silence_s: float | None = None) -> None:
    """Make the Hub's client give up on a silent server [default: after 300 s] and on an endless response."""
    wait_s = silence_s or VERIFYING_S
    with _BOUNDING:  # all threads share one client, and a new factory closes it under those that use it
        if not _WAIT_S:
            _WAIT_S.append(wait_s)
            set_client_factory(lambda: bounded_client(_WAIT_S[0]))
        elif _WAIT_S[0] != wait_s:
            _WAIT_S[0] = wait_s
            get_session().timeout = _timeouts(wait_s)


def bounded_client(wait_s: float) -> HttpObject:
    """Return a client that gives up after `wait_s` silent seconds, and on an endless response.

    Raises:
        RemoteUnreachable: a proxy of the environment is invalid.
    """
    from huggingface_hub.utils._http import default_client_factory  # keeps the user's proxies and certificates

    try:
        client = default_client_factory()
    except Exception as error:  # noqa: BLE001 - httpx raises ImportError, ValueError, and an InvalidURL of its own
        raise unusable_proxy(error) from None
    client.timeout = _timeouts(wait_s)
    _Bounds(client)
    return client


def _timeouts(wait_s: float) -> tuple[float, float, float, float]:
    return CONNECT_S, wait_s, wait_s, wait_s  # connect, read, write, pool


class _Bounds:
    """Bounds how much of each response `client` reads.

    Documents are read whole and are small. A file is streamed and has the size of the response to HEAD, which the
    client always requests first. A stream without that size is bounded by its reader (`Wire`).
    """

    def __init__(self, client: HttpObject) -> None:
        self._send = client.send
        self._announced: dict[str, int] = {}
        client.send = self.send
        client.headers["accept-encoding"] = "identity"  # the size of a compressed response cannot be bounded
        client.event_hooks = {**client.event_hooks, "response": [*client.event_hooks["response"], self._bound]}

    def send(self, request: HttpObject, *, stream: bool = False, **more: HttpObject) -> HttpObject:
        """Send in place of the client's `send`, which all its calls use; the hook reads the bound from the request."""
        request.extensions[_MOST] = self._announced.get(str(request.url)) if stream else MAX_SMALL_BYTES
        response = self._send(request, stream=stream, **more)
        if request.method == "HEAD" and response.status_code < HTTPStatus.BAD_REQUEST:
            self._note(response)
        return response

    def _note(self, response: HttpObject) -> None:
        size = response.headers.get("x-linked-size") or response.headers.get("content-length", "")
        if size.isascii() and size.isdigit():
            # the client fetches the file from this URL, or directly from the redirect's target
            for one in filter(None, (response.request, response.next_request)):
                self._announced[str(one.url)] = int(size)

    @staticmethod
    def _bound(response: HttpObject) -> None:
        if response.has_redirect_location and response.url.scheme == "https":
            target = response.url.join(response.headers["location"])
            if target.scheme == "http":
                raise unencrypted(f"{response.url.scheme}://{response.url.netloc.decode()}", str(target))
        most = response.request.extensions.get(_MOST)
        if most is None or response.request.method == "HEAD":
            return
        where = shown(str(response.url).partition("?")[0])  # the query may hold a signature
        packing = response.headers.get("content-encoding", "identity").strip().lower()
        if response.has_redirect_location or response.status_code >= HTTPStatus.BAD_REQUEST:
            response.headers.pop("content-encoding", None)
            response.stream = _Body(response.stream, MAX_ERROR_BYTES if packing == "identity" else 0, None)
            return
        if packing != "identity":
            raise RemoteUnreachable(f"{where}: sent compressed bytes (`{shown(packing, 40)}`), expected plain ones")
        refusal = RemoteUnreachable(f"{where}: sent more than {most:,} bytes, more than such a response may have")
        response.stream = _Body(response.stream, most, refusal)


class _Body(_HTTP.SyncByteStream):  # type: ignore[misc]  # of whichever HTTP library
    """A body that ends after `most` bytes: with `refusal`, or silently."""

    def __init__(self, stream: HttpObject, most: int, refusal: RemoteUnreachable | None) -> None:
        self._stream, self._most, self._refusal = stream, most, refusal

    def __iter__(self) -> Iterator[bytes]:
        came = 0
        for piece in self._stream:
            came += len(piece)
            if came <= self._most:
                yield piece
            elif self._refusal is not None:
                raise self._refusal
            else:
                return

    def close(self) -> None:
        """Give the connection back."""
        self._stream.close()
