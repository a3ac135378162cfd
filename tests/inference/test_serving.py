"""What is leased to an engine, and what is not; without an engine (`tests/inference/engines` has the real one)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapterhub.core.disk.files import digest_of_file
from adapterhub.core.errors import (
    AdapterHubError,
    AdapterNotFound,
    BaseMismatch,
    DigestMismatch,
    DiskFull,
    NoCompatibleRelease,
    NotFound,
    RefusedAdapter,
    RemoteUnreachable,
    SpecError,
    StoreLocked,
    UnsupportedAdapter,
    UsageProblem,
)
from adapterhub.formats.manifest import Manifest
from adapterhub.inference.serving import AdapterProvider, ServeSettings, refusal_of
from adapterhub.inference.serving.vllm import (
    InstalledVllm,
    VllmOptions,
    allowed_rank,
    command_of,
    environ_of,
    find_vllm,
    option_in,
)
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.directory import PublishedDirectory
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.remotes import Remotes
from adapterhub.vllm_plugin import register
from adapterhub.vllm_plugin.resolver import folder_of_model
from tests.support.tiny import make_base

Add = Callable[..., Added]


@pytest.fixture
def provider(library: Library, base: BaseRecord) -> Iterator[AdapterProvider]:
    made = AdapterProvider(library, base, engine="vllm@0.32", max_rank=16)
    yield made
    made.close()


def publish(folder: Path, added: Added) -> Path:
    """A build as a published directory has it, its files no links."""
    place = folder / added.build.manifest.name / "1.0.0"
    shutil.copytree(added.build.folder, place)
    return place


def from_directory(library: Library, base: BaseRecord, folder: Path) -> AdapterProvider:
    return AdapterProvider(
        library, base, engine="vllm@0.32", max_rank=16, sources=lambda _: [PublishedDirectory(folder)]
    )


# ---------------------------------------------------------------- leases
def test_an_adapter_is_leased_as_an_absolute_folder_named_by_its_digest(provider: AdapterProvider, add: Add) -> None:
    added = add("legal-qa")

    leased = provider.find("legal-qa==1.0")

    assert leased.digest == added.build.manifest.digest
    assert leased.folder.is_absolute()
    assert leased.folder.name == leased.digest.replace(":", "-")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in leased.folder.iterdir()}
    assert provider.find("legal-qa@base-7b") == leased


def test_a_look_up_reads_the_manifest_once(
    provider: AdapterProvider, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("legal-qa")
    read, texts = Manifest.read, []
    monkeypatch.setattr(Manifest, "read", lambda path: texts.append(path) or read(path))

    provider.find("legal-qa")

    assert len(texts) == 1


def test_a_leased_adapter_stays_until_the_provider_closes(
    library: Library, provider: AdapterProvider, add: Add
) -> None:
    build = add("legal-qa").build
    leased = provider.find("legal-qa")

    with pytest.raises(StoreLocked):
        library.remove([build])
    shutil.rmtree(build.folder)
    library.gc(grace_s=0)

    assert digest_of_file(leased.folder / "adapter_model.safetensors")[0] in {f.sha256 for f in build.manifest.files}
    provider.close()
    assert not leased.folder.exists()
    assert library.gc(grace_s=0).gone


def test_a_build_counts_as_soon_as_its_origin_is_recorded_which_comes_after_it(
    provider: AdapterProvider, library: Library, add: Add
) -> None:
    place = "http://127.0.0.1:1"
    first = add("legal-qa", namespace="acme")
    second = add("legal-qa", namespace="acme", version="1.1.0", seed=2)
    Remotes(library.root).add("ours", place, namespaces=("acme",))
    library.note_origin(first.build, place)
    assert provider.find("acme/legal-qa").version == "1.0.0"

    library.note_origin(second.build, place)

    assert provider.find("acme/legal-qa").version == "1.1.0"


def test_an_adapter_that_is_not_here_is_fetched_once_for_all_who_ask(
    tmp_path: Path, library: Library, base: BaseRecord, add: Add
) -> None:
    elsewhere = Library(tmp_path / "elsewhere")
    publish(tmp_path / "published", add("legal-qa", into=elsewhere))
    asked = []

    def sources(spec: object) -> list[PublishedDirectory]:
        asked.append(spec)
        return [PublishedDirectory(tmp_path / "published")]

    provider = AdapterProvider(library, base, engine="vllm@0.32", sources=sources)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(provider.find, ["legal-qa", "legal-qa==1.0"] * 8))

    assert len({leased.folder for leased in found}) == 1
    assert len(library.builds_named("legal-qa")) == 1
    provider.close()


def test_a_name_that_nobody_has_is_not_asked_for_again_at_once(library: Library, base: BaseRecord) -> None:
    asked = []
    provider = AdapterProvider(library, base, engine="vllm@0.32", sources=lambda spec: asked.append(spec) or [])

    for _ in range(3):
        with pytest.raises(AdapterNotFound):
            provider.find("nothing")

    assert len(asked) == 1


def test_the_largest_rank_that_fits_the_server_is_taken(provider: AdapterProvider, add: Add) -> None:
    add("legal-qa", rank=4)
    add("legal-qa", rank=8, variant=True)
    add("legal-qa", rank=32, variant=True)

    assert provider.find("legal-qa").rank == 8


# ---------------------------------------------------------------- refusals
def test_over_rank_is_refused_with_the_limit(provider: AdapterProvider, add: Add) -> None:
    add("legal-qa", rank=32)

    with pytest.raises(NoCompatibleRelease, match="rank 32, at most 16 asked"):
        provider.find("legal-qa")


def test_what_the_engine_cannot_read_is_refused_with_its_reason(
    library: Library, provider: AdapterProvider, add: Add
) -> None:
    add("legal-qa", init_lora_weights="pissa")

    with pytest.raises(UnsupportedAdapter) as caught:
        provider.find("legal-qa")

    assert any("init_lora_weights" in reason for reason in caught.value.reasons)
    assert not list((library.root / "leases").iterdir())


def test_another_base_is_refused(tmp_path: Path, library: Library, add: Add) -> None:
    add("legal-qa")
    other = library.bases.add(make_base(tmp_path / "other", seed=1), "other")
    provider = AdapterProvider(library, other, engine="vllm@0.32")

    with pytest.raises(NoCompatibleRelease, match="made for another base"):
        provider.find("legal-qa")
    with pytest.raises(BaseMismatch, match="another base than the served one"):
        provider.find("legal-qa@base-7b")


def test_a_mismatch_that_somebody_allowed_is_served(tmp_path: Path, library: Library, add: Add) -> None:
    build = add("legal-qa").build
    other = library.bases.add(make_base(tmp_path / "other", seed=1), "other")
    library.allow_mismatch(build, other)
    provider = AdapterProvider(library, other, engine="vllm@0.32")

    assert provider.find("legal-qa").digest == build.manifest.digest
    provider.close()


def test_numbers_that_are_not_finite_never_come_in(
    tmp_path: Path, library: Library, base: BaseRecord, add: Add
) -> None:
    place = publish(tmp_path / "published", add("legal-qa", into=Library(tmp_path / "elsewhere")))
    weights = place / "adapter_model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values()))[0, 0] = np.nan
    weights.unlink()
    save_file(tensors, weights, metadata={"format": "pt"})
    manifest = json.loads((place / "adapterhub.json").read_text())
    for entry in manifest["files"]:
        entry["sha256"], entry["size_bytes"] = digest_of_file(place / entry["path"])
    (place / "adapterhub.json").unlink()
    (place / "adapterhub.json").write_text(json.dumps(manifest))

    with pytest.raises(RefusedAdapter) as caught:
        from_directory(library, base, tmp_path / "published").find("legal-qa")

    assert [code for code, _ in caught.value.findings] == ["E_NONFINITE"]
    assert refusal_of(caught.value, "legal-qa>=1").message.startswith("`legal-qa>=1`: refused `…1.0.0`")
    assert list(library.installed()) == []


def test_bytes_that_changed_in_the_store_are_refused(library: Library, provider: AdapterProvider, add: Add) -> None:
    manifest = add("legal-qa").build.manifest
    entry = next(e for e in manifest.files if e.path == "adapter_model.safetensors")
    blob = library.store.blob_path(entry.sha256)
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)

    with pytest.raises(DigestMismatch):
        provider.find("legal-qa")


@pytest.mark.parametrize("name", ["../etc", "/etc", "legal-qa@./base", "legal-qa@/etc", "legal-qa@~/x", "Legal QA", ""])
def test_a_request_never_names_a_path(provider: AdapterProvider, add: Add, name: str) -> None:
    add("legal-qa")

    with pytest.raises((SpecError, NotFound)):
        provider.find(name)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SpecError("x y", "not a name"), 400),
        (AdapterNotFound("no adapter"), 404),
        (UnsupportedAdapter("cannot be served", ["DoRA"]), 409),
        (RefusedAdapter("refused", [("E_NONFINITE", "NaN")]), 422),
        (StoreLocked("held"), 424),
        (RemoteUnreachable("no answer"), 424),
        (DiskFull("no room"), 424),
        (AdapterHubError("?"), 424),
    ],
)
def test_a_refusal_has_the_status_that_says_whose_fault_it_is(error: AdapterHubError, status: int) -> None:
    assert refusal_of(error).status == status


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("refused `/srv/in/a/1.0`: [E_X] layers.0/q: bad", "refused `…1.0`: [E_X] layers.0/q: bad"),
        ("remote `ours` (https://ours.example:8443/x) does not answer", "remote `ours` (…) does not answer"),
        ("`acme/legal-qa@meta/llama==1.0`: no", "`acme/legal-qa@meta/llama==1.0`: no"),
    ],
)
def test_a_refusal_does_not_tell_the_places_of_the_server(message: str, told: str) -> None:
    assert refusal_of(RefusedAdapter(message, [])).message == told


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("refused `https://ours.example/acme/legal-qa`", "`acme/legal-qa`: refused `…`"),
        ("`acme/legal-qa` cannot be served", "`acme/legal-qa` cannot be served"),
    ],
)
def test_a_refusal_has_the_name_as_the_client_wrote_it(message: str, told: str) -> None:
    assert refusal_of(RefusedAdapter(message, []), "acme/legal-qa").message == told


def test_a_client_is_not_told_which_places_were_asked() -> None:
    error = AdapterNotFound("no adapter `x` in library `/srv/home`, directory `/srv/in`")

    assert refusal_of(error).message == "no adapter `x` is known to this server"


# ---------------------------------------------------------------- settings
def test_settings_come_back_from_the_environment() -> None:
    settings = ServeSettings(root=Path("/srv/home"), max_rank=64, remote="ours", offline=True, signatures="require")

    assert ServeSettings.from_environ(settings.to_environ()) == settings
    assert ServeSettings.from_environ({"ADAPTERHUB_HOME": "/srv/home"}) == ServeSettings(root=Path("/srv/home"))


@pytest.mark.parametrize("pair", [("ADAPTERHUB_SERVE_MAX_RANK", "-1"), ("ADAPTERHUB_SERVE_SIGNATURES", "maybe")])
def test_a_setting_that_is_none_is_refused_by_name(pair: tuple[str, str]) -> None:
    with pytest.raises(UsageProblem, match=pair[0]):
        ServeSettings.from_environ(dict([pair]))


# ---------------------------------------------------------------- vLLM
@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (16, 16), (17, 32), (300, 320), (512, 512)])
def test_the_least_allowed_rank_is_taken(rank: int, allowed: int) -> None:
    assert allowed_rank(rank) == allowed


def test_a_rank_beyond_all_is_refused() -> None:
    with pytest.raises(UsageProblem, match="512"):
        allowed_rank(513)


def test_vllm_is_started_so_that_names_are_the_only_way_in() -> None:
    options = VllmOptions(
        model=Path("/m"),
        served_name="base-7b",
        host="127.0.0.1",
        port=1,
        max_rank=32,
        slots=2,
        cpu_slots=9,
        extra=("-x",),
    )
    vllm = InstalledVllm(python="py", version="0.32.0", is_cpu=True)

    command = command_of(vllm, options)
    environ = environ_of(vllm, {"VLLM_PLUGINS": "mine"}, {"ADAPTERHUB_HOME": "/h"})

    assert command[:3] == ["py", "-m", "vllm.entrypoints.openai.api_server"]
    assert [option_in(command, f"--{o}") for o in ("max-lora-rank", "max-loras", "max-cpu-loras")] == ["32", "2", "9"]
    assert option_in(command, "--middleware") == "adapterhub.vllm_plugin.guard.Guard"
    assert environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert environ["VLLM_PLUGINS"] == "mine,adapterhub"
    assert environ["ADAPTERHUB_HOME"] == "/h"


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/ls", __import__("sys").executable])
def test_an_interpreter_without_vllm_is_told_from_one_with_it(python: str) -> None:
    with pytest.raises(NotFound) as caught:
        find_vllm(python)

    assert "pip install" in caught.value.hint


def test_registering_never_raises(caplog: pytest.LogCaptureFixture) -> None:
    register()  # there is no vLLM here

    assert "adapterhub is not used" in caplog.text


def test_options_are_read_off_a_command_line() -> None:
    argv = ["vllm", "serve", "--revision=main", "--max-lora-rank", "64", "--enable-lora"]

    assert [option_in(argv, o) for o in ("--revision", "--max-lora-rank", "--enable-lora", "--model")] == [
        "main", "64", None, None
    ]  # fmt: skip


def test_a_served_model_that_cannot_be_found_is_refused() -> None:
    with pytest.raises(NotFound, match="is not a folder"):
        folder_of_model("nobody/nothing")
