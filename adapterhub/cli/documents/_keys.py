"""Documents of keys, signatures and named servers."""
# mypy: disable-error-code="valid-type, misc"
# `document_of` makes types when it runs.

from __future__ import annotations

from typing import Any, Union

from adapterhub.api import publishing
from adapterhub.api.steps import keys
from adapterhub.cli.documents._values import document_of
from adapterhub.trust.signing import trust

_LISTED = Union[tuple(document_of(one) for one in (keys.OwnKey, trust.TrustedKey, trust.RevokedKey))]  # noqa: UP007 - of a tuple
_REMOTE = document_of(keys.KnownRemote)

KEYS: dict[str, Any] = {
    "key-new": document_of(keys.NewKey),
    "key-list": list[_LISTED],
    "key-show": document_of(keys.NamedKey),
    "key-trust": document_of(trust.TrustedKey),
    "key-untrust": document_of(trust.TrustedKey),
    "key-revoke": document_of(trust.RevokedKey),
    "key-rotate": document_of(keys.Rotated),
    "key-policy": list[document_of(keys.PlacePolicy)],
    "sign": document_of(publishing.Signed),
}
REMOTES: dict[str, Any] = {
    "remote-add": _REMOTE,
    "remote-set": _REMOTE,
    "remote-list": list[_REMOTE],
    "remote-remove": _REMOTE,
    "remote-login": document_of(keys.LoggedIn),
    "remote-logout": document_of(keys.LoggedOut),
}
