"""Withdraws what was published: yanks a version, takes that back, deletes a version or a whole repository.

Our registry records a yank itself. Any other server gets a commit with `adapterhub.yanked.json`, which has the reasons,
and then the tag `yanked-v<version>` on that commit, which is the mark.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from adapterhub.core.errors import SpecError
from adapterhub.core.specs import version_key
from adapterhub.distribution.http.wire import Wire
from adapterhub.distribution.hub._listing import refs_of
from adapterhub.distribution.hub._versions import YANKED_FILE, YANKED_TAG, places_in, reasons_at, yank_tags

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEMA: Final = "adapterhub-yanked/1"


class Withdrawal:
    """Withdraws on one server. `is_registry`: the server records yanks itself."""

    def __init__(self, api: HfApi, wire: Wire, *, is_registry: bool) -> None:
        self._api, self._wire, self.is_registry = api, wire, is_registry

    def yank(self, repo: str, version: str, reason: str) -> None:
        """Yank a version, or replace the reason. An interrupted call leaves no yank; a second call goes on."""
        with self._wire.plainly(f"yank of `{repo}` {version}"):
            if self.is_registry:
                self._post(f"api/adapt/v1/adapters/{repo}/yank", version=version, reason=reason)
                return
            commit = self._write(repo, version, f"Yank {version}: {reason}", reason)
            self._delete_mark(repo, version)
            self._api.create_tag(repo, tag=f"{YANKED_TAG}{version}", revision=commit)

    def unyank(self, repo: str, version: str) -> None:
        """Take a yank back, and keep its reason. An interrupted call leaves the yank; a second call goes on."""
        with self._wire.plainly(f"unyank of `{repo}` {version}"):
            if self.is_registry:
                self._post(f"api/adapt/v1/adapters/{repo}/unyank", version=version)
                return
            self._write(repo, version, f"Take back the yank of {version}")
            self._delete_mark(repo, version)

    def taken_back(self, repo: str) -> Mapping[str, str]:
        """The reason of each yank that was taken back, by the version as it is compared."""
        if self.is_registry:
            told = places_in(self._wire, repo, lists_versions=True)
            found = {one.version: one.unyanked for one in told if one.version and one.unyanked is not None}
        else:
            with self._wire.plainly(f"yanks of `{repo}`"):
                head = refs_of(self._wire, repo).branches.get("main")
                found = reasons_at(self._wire, repo, head, taken_back=True) if head else {}
        keys: dict[str, str] = {}
        for text, why in found.items():
            with contextlib.suppress(SpecError):  # a server may write anything there
                keys[version_key(text)] = why
        return keys

    def delete_version(self, repo: str, version: str) -> None:
        """Delete the tag of a version, and then the mark of its yank."""
        with self._wire.plainly(f"deletion of `{repo}` {version}"):
            self._api.delete_tag(repo, tag=f"v{version}")
            if not self.is_registry:
                self._delete_mark(repo, version)

    def delete_repository(self, repo: str) -> None:
        """Delete a repository with all its versions."""
        with self._wire.plainly(f"deletion of `{repo}`"):
            self._api.delete_repo(repo)

    def _post(self, path: str, **body: str) -> None:
        self._wire.json(path, form=json.dumps(body).encode())

    def _delete_mark(self, repo: str, version: str) -> None:
        for tag in yank_tags(refs_of(self._wire, repo).tags, version):
            self._api.delete_tag(repo, tag=tag)

    def _write(self, repo: str, version: str, message: str, reason: str | None = None) -> str:
        """Commit the reason of a version to `main`, or that it was taken back; returns the commit that says so."""
        head = refs_of(self._wire, repo).branches["main"]
        before = {back: reasons_at(self._wire, repo, head, taken_back=back) for back in (False, True)}
        known = before[False].get(version) or before[True].get(version, "")
        after = {back: {v: why for v, why in found.items() if v != version} for back, found in before.items()}
        after[reason is None][version] = known if reason is None else reason
        if after == before:
            return head
        live = {v: {"reason": why} for v, why in after[False].items()}
        value = {
            "schema": SCHEMA,
            "versions": live | {v: {"reason": why, "taken_back": True} for v, why in after[True].items()},
        }
        data = json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"
        from huggingface_hub import CommitOperationAdd

        # naming the parent serializes concurrent yanks and pushes
        made = self._api.create_commit(
            repo, [CommitOperationAdd(YANKED_FILE, io.BytesIO(data))], commit_message=message, parent_commit=head
        )
        return str(made.oid)
