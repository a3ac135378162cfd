"""Files on their way out."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import HfFileSystem, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

from tests.registry.conformance.client import WEIGHTS, Client, check, raises


def metadata(client: Client, repo: str, path: str):
    return get_hf_file_metadata(hf_hub_url(repo, path, endpoint=client.url), token=client.token)


@check
def download_by_every_kind_of_revision(client: Client) -> None:
    repo = client.repo(a__txt="1")
    first = client.api.model_info(repo).sha
    client.api.create_tag(repo, tag="one")
    client.api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=repo)

    found = [client.read(repo, "a.txt", revision=name) for name in (None, "main", "one", first, "refs/heads/main")]

    assert found == [b"2", b"2", b"1", b"1", b"2"]


@check
def metadata_of_a_regular_file(client: Client) -> None:
    repo = client.repo(a__txt="hello")

    found = metadata(client, repo, "a.txt")

    assert found.etag == hashlib.sha1(b"blob 5\0hello").hexdigest()  # noqa: S324 - the name git gives
    assert found.size == 5
    assert found.commit_hash == client.api.model_info(repo).sha
    assert getattr(found, "xet_file_data", None) is None


@check
def metadata_of_an_lfs_file(client: Client) -> None:
    repo = client.repo(w__safetensors=WEIGHTS)

    found = metadata(client, repo, "w.safetensors")

    assert found.etag == hashlib.sha256(WEIGHTS).hexdigest()
    assert found.size == len(WEIGHTS)
    assert getattr(found, "xet_file_data", None) is None


@check
def snapshot_into_the_cache(client: Client) -> None:
    repo = client.adapter()

    folder = Path(client.api.snapshot_download(repo, cache_dir=client.folder / "cache"))

    assert folder.name == client.api.model_info(repo).sha
    assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "sub" / "deep" / "more.txt").read_text() == "more"
    names = {path.name for path in (folder.parent.parent / "blobs").iterdir()}
    assert hashlib.sha256(WEIGHTS).hexdigest() in names


@check
def snapshot_again_without_the_network(client: Client) -> None:
    repo, cache = client.adapter(), client.folder / "cache"

    first = client.api.snapshot_download(repo, cache_dir=cache)

    assert client.api.snapshot_download(repo, cache_dir=cache, local_files_only=True) == first


@check
def snapshot_into_a_folder(client: Client) -> None:
    repo, target = client.adapter(), client.folder / "target"

    client.api.snapshot_download(repo, local_dir=target, cache_dir=client.folder / "cache")

    assert (target / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert (target / "sub" / "notes.txt").read_text() == "notes"


@check
def snapshot_of_some_files(client: Client) -> None:
    repo, target = client.adapter(), client.folder / "target"

    client.api.snapshot_download(
        repo, local_dir=target, cache_dir=client.folder / "cache", allow_patterns="*.txt", ignore_patterns="*/deep/*"
    )

    files = [str(path.relative_to(target)) for path in target.rglob("*.*") if ".cache" not in path.parts]
    assert files == ["sub/notes.txt"]


@check
def snapshot_of_a_branch_with_a_slash(client: Client) -> None:
    repo = client.repo(a__txt="a")
    client.api.create_branch(repo, branch="feat/x")

    folder = Path(client.api.snapshot_download(repo, revision="feat/x", cache_dir=client.folder / "cache"))

    assert (folder / "a.txt").read_text() == "a"


@check
def a_missing_file(client: Client) -> None:
    repo, cache = client.repo(a__txt="a"), client.folder / "cache"
    head = client.api.model_info(repo).sha

    raises(EntryNotFoundError, lambda: client.api.hf_hub_download(repo, "no.txt", cache_dir=cache))

    remembered = cache / f"models--{repo.replace('/', '--')}" / ".no_exist" / str(head) / "no.txt"
    assert remembered.exists()
    assert not isinstance(try_to_load_from_cache(repo, "no.txt", cache_dir=cache), str)


@check
def a_missing_revision(client: Client) -> None:
    repo = client.repo(a__txt="a")

    raises(RevisionNotFoundError, lambda: client.read(repo, "a.txt", revision="no-such"))
    raises(RevisionNotFoundError, lambda: client.read(repo, "a.txt", revision="0" * 40))


@check
def parts_of_a_file_as_a_file_system(client: Client) -> None:
    repo = client.adapter()
    files = HfFileSystem(endpoint=client.url, token=client.token, skip_instance_cache=True)

    with files.open(f"{repo}/adapter_model.safetensors", "rb", block_size=1000) as stream:
        stream.seek(5000)
        part = stream.read(100)

    assert part == WEIGHTS[5000:5100]
    assert sorted(files.ls(repo, detail=False)) == [
        f"{repo}/{name}"
        for name in (".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "sub")
    ]


@check
def the_header_of_a_safetensors_file(client: Client) -> None:
    header = b'{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(24)
    repo = client.repo(model__safetensors=data)

    found = client.api.get_safetensors_metadata(repo)

    assert found.parameter_count == {"F32": 6}


@check
def the_card_of_a_repository(client: Client) -> None:
    from huggingface_hub import ModelCard

    repo = client.adapter("---\nlicense: apache-2.0\ntags: [x]\n---\n# Words\n")

    card = ModelCard(client.read(repo, "README.md").decode())

    assert (card.data.license, card.data.tags) == ("apache-2.0", ["x"])
