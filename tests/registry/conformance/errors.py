"""Refusals, by the client's own classes."""

from __future__ import annotations

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.registry.conformance.client import Client, check, raises, status_of


def upload(api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo)


@check
def a_repository_that_is_missing(client: Client) -> None:
    repo, api = client.name(), client.api

    for call in (api.model_info, api.list_repo_files, api.list_repo_refs, api.list_repo_commits):
        raises(RepositoryNotFoundError, lambda call=call: list(call(repo)))
    raises(RepositoryNotFoundError, lambda: api.snapshot_download(repo, cache_dir=client.folder))
    raises(RepositoryNotFoundError, lambda: client.read(repo, "a.txt"))
    raises(RepositoryNotFoundError, lambda: upload(api, repo))


@check
def a_revision_that_is_missing(client: Client) -> None:
    repo, api = client.repo(a__txt="a"), client.api

    raises(RevisionNotFoundError, lambda: api.model_info(repo, revision="no-such"))
    raises(RevisionNotFoundError, lambda: api.list_repo_files(repo, revision="no-such"))
    raises(RevisionNotFoundError, lambda: api.list_repo_commits(repo, revision="no/such"))
    raises(RevisionNotFoundError, lambda: api.create_tag(repo, tag="t", revision="no-such"))


@check
def a_folder_that_is_missing(client: Client) -> None:
    repo = client.repo(a__txt="a")

    raises(EntryNotFoundError, lambda: list(client.api.list_repo_tree(repo, "no-such")))


@check
def a_request_that_cannot_be(client: Client) -> None:
    repo = client.repo()

    error = raises(BadRequestError, lambda: client.api.create_tag(repo, tag="two words"))

    assert "two words" in str(error)


@check
def a_private_repository_does_not_exist_for_others(client: Client) -> None:
    repo = client.repo(a__txt="a")
    client.api.update_repo_settings(repo, private=True)

    for api in (client.anonymous, client.as_user("write")):
        raises(RepositoryNotFoundError, lambda api=api: api.model_info(repo))
        raises(RepositoryNotFoundError, lambda api=api: api.hf_hub_download(repo, "a.txt", cache_dir=client.folder))
        raises(RepositoryNotFoundError, lambda api=api: upload(api, repo))
    assert client.as_user("read", f"{client.prefix}/*").model_info(repo).private is True


@check
def a_gated_repository_shows_no_files(client: Client) -> None:
    repo = client.repo(a__txt="a")
    client.api.update_repo_settings(repo, gated="manual")

    assert client.anonymous.model_info(repo).gated == "manual"
    raises(GatedRepoError, lambda: client.anonymous.hf_hub_download(repo, "a.txt", cache_dir=client.folder / "one"))
    raises(GatedRepoError, lambda: client.as_user("read").auth_check(repo))
    granted = client.as_user("read", repo)
    assert granted.hf_hub_download(repo, "a.txt", cache_dir=client.folder / "two")


@check
def a_token_that_only_reads(client: Client) -> None:
    repo = client.repo(a__txt="a")
    reader = client.as_user("read", client.prefix)

    error = raises(HfHubHTTPError, lambda: upload(reader, repo))

    assert status_of(error) == 403
    assert "cannot change" in str(error)
    assert status_of(raises(HfHubHTTPError, lambda: reader.create_repo(client.name()))) == 403


@check
def a_token_for_another_namespace(client: Client) -> None:
    repo = client.repo(a__txt="a")
    writer = client.as_user("write", "elsewhere")

    assert status_of(raises(HfHubHTTPError, lambda: upload(writer, repo))) == 403
    assert status_of(raises(HfHubHTTPError, lambda: writer.delete_repo(repo))) == 403
    assert status_of(raises(HfHubHTTPError, lambda: writer.update_repo_settings(repo, private=True))) == 403


@check
def no_token_writes_nothing(client: Client) -> None:
    repo = client.repo(a__txt="a")

    for call in (
        lambda: upload(client.anonymous, repo),
        lambda: client.anonymous.create_repo(client.name()),
        lambda: client.anonymous.delete_repo(repo),
        lambda: client.anonymous.create_tag(repo, tag="t"),
    ):
        assert status_of(raises(HfHubHTTPError, call)) == 401


@check
def a_token_that_is_wrong(client: Client) -> None:
    for token in ("adp_" + "a" * 32 + "_00000000", "hf_something", client.token[:-1] + "x"):
        stranger = HfApi(endpoint=client.url, token=token)

        # clients before 1.0 raise the error of their HTTP library here
        assert status_of(raises(Exception, stranger.whoami)) == 401


@check
def names_that_cannot_be(client: Client) -> None:
    for name in ("api/x", "_xet/x", "acme/x.git", f"{client.prefix}/" + "x" * 97):
        raises((ValueError, HfHubHTTPError), lambda name=name: client.api.create_repo(name))


@check
def a_name_that_looks_like_another(client: Client) -> None:
    repo = client.repo()

    raises(BadRequestError, lambda: client.api.create_repo(repo.replace("/", "/-").replace("/-", "/") + "_"))


@check
def kinds_that_are_not_here(client: Client) -> None:
    repo = client.repo()

    raises(RepositoryNotFoundError, lambda: client.api.dataset_info(repo))
    raises(HfHubHTTPError, lambda: client.api.create_repo(client.name(), repo_type="dataset"))
