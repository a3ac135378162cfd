"""Withdraws what was published: yanks a version, takes that back, deletes a version or a whole repository.

Our registry records a yank itself. Any other server gets a commit with `adapterhub.yanked.json`, which has the reasons,
and then the tag `yanked-v<version>` on that commit, which is the mark.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Final

from adapterhub.distribution.http.wire import Wire
from adapterhub.distribution.hub._listing import refs_of
from adapterhub.distribution.hub._versions import YANKED_FILE, YANKED_TAG, reasons_at, yank_tags

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
            commit = self._write(repo, version, reason, f"Yank {version}: {reason}")
            self._delete_mark(repo, version)
            self._api.create_tag(repo, tag=f"{YANKED_TAG}{version}", revision=commit)

    def unyank(self, repo: str, version: str) -> None:
        """Take a yank back. The tag goes first: without it, the version is not yanked."""
        with self._wire.plainly(f"unyank of `{repo}` {version}"):
            if self.is_registry:
                self._post(f"api/adapt/v1/adapters/{repo}/unyank", version=version)
                return
            self._delete_mark(repo, version)
            self._write(repo, version, None, f"Take back the yank of {version}")

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

    def _write(self, repo: str, version: str, reason: str | None, message: str) -> str:
        """Commit the reason of a version to `main`, or take it out; returns the commit that says so."""
        head = refs_of(self._wire, repo).branches["main"]
        before = reasons_at(self._wire, repo, head)
        reasons = {v: why for v, why in before.items() if v != version} | ({} if reason is None else {version: reason})
        if reasons == before:
            return head
        value = {"schema": SCHEMA, "versions": {v: {"reason": why} for v, why in reasons.items()}}
        data = json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"
        from huggingface_hub import CommitOperationAdd

        # naming the parent serializes concurrent yanks and pushes
        made = self._api.create_commit(
            repo, [CommitOperationAdd(YANKED_FILE, io.BytesIO(data))], commit_message=message, parent_commit=head
        )
        return str(made.oid)
