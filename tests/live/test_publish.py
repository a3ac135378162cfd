"""`LiveStream.publish`: versions from memory, the alias that moves last, what stays and what goes."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from adapterhub import Library
from adapterhub.core.disk.files import digest_of_file
from adapterhub.core.errors import (
    AdapterNotFound,
    BaseMismatch,
    Conflict,
    DiskFull,
    RefusedAdapter,
    SpecError,
    StoreLocked,
    UsageProblem,
)
from adapterhub.live.stream import LiveStream
from adapterhub.projects.session import wanted_from
from tests.support.tiny import make_adapter, make_base


def versions(library: Library) -> list[str]:
    return sorted((b.manifest.version for b in library.installed("agent")), key=lambda v: int(v.rpartition(".")[2]))


def sound(library: Library) -> bool:
    return all(not library.verify_build(build).errors for build in library.installed()) and not library.broken()


def files_in(library: Library) -> dict[str, str]:
    """Every file but locks and the index, with its bytes."""
    return {
        str(path.relative_to(library.root)): digest_of_file(path)[0]
        for path in sorted(library.root.rglob("*"))
        if path.is_file() and "locks" not in path.parts and not path.name.startswith("index.db")
    }


def test_a_version_is_the_state_that_was_given(home, stream, state) -> None:
    published = stream.publish(state(3), step=3, metrics={"loss": 0.5})

    assert (published.version, published.step, published.refused) == ("0.0.1", 3, None)
    assert published.is_current
    assert published.is_durable
    assert home.alias("agent@live").main.digest == published.digest
    build = home["agent@live"]
    assert build.manifest.metrics == {"loss": 0.5}
    assert build.manifest.annotations["live"] == {"alias": "live", "step": 3}
    kept = load_file(build.folder / "adapter_model.safetensors")
    assert kept.keys() == state(3).keys()
    assert all(np.array_equal(kept[name], value) for name, value in state(3).items())
    assert sound(home)


def test_it_is_what_add_makes_of_the_same_files(home, stream, state, folder) -> None:
    of_memory = stream.publish(state(0), step=1).build.manifest
    of_add = home.add(folder, name="other", base="base-7b").build.manifest

    for fact in ("base", "method", "rank", "alpha", "target_modules", "dtype", "parameters"):
        assert getattr(of_memory, fact) == getattr(of_add, fact), fact


def test_a_folder_is_published_too(home, stream, folder) -> None:
    published = stream.publish(folder, step=7)
    [weights] = [e.sha256 for e in published.build.manifest.files if e.path == "adapter_model.safetensors"]
    assert weights == digest_of_file(folder / "adapter_model.safetensors")[0]
    assert stream.publish(str(folder), step=7).version == "0.0.2"


def test_versions_count_upward_whatever_the_steps(home, stream, state, config) -> None:
    steps = [5, 10, 5, 10]
    found = [stream.publish(state(n), step=step) for n, step in enumerate(steps)]
    assert [one.version for one in found] == ["0.0.1", "0.0.2", "0.0.3", "0.0.4"]
    assert [one.step for one in found] == steps

    again = Library(home.root).live("agent@base-7b", config=config)
    home.remove("agent==0.0.1", "agent==0.0.2", "agent==0.0.3")
    assert again.publish(state(9), step=1).version == "0.0.5"


def test_no_number_comes_twice_after_all_versions_are_gone(home, config, state) -> None:
    stream = home.live("agent@base-7b", config=config, gate=lambda one: one.step < 2 or "worse")
    stream.publish(state(1), step=1)
    refused = stream.publish(state(2), step=2)
    home.remove(refused.spec)

    assert Library(home.root).live("agent@base-7b", config=config).publish(state(1), step=1).version == "0.0.3"


def test_the_last_ones_stay_and_others_go_with_their_bytes(home, config, state) -> None:
    stream = home.live("agent@base-7b", config=config, keep=2)
    for step in range(6):
        stream.publish(state(step), step=step, sync=step % 2 == 0)
    stream.close()

    assert versions(home) == ["0.0.5", "0.0.6"]
    assert len(list((home.root / "manifests" / "sha256").iterdir())) == 2
    assert len(list((home.root / "blobs" / "sha256").glob("*/*"))) == 3  # two weights, one config
    assert sound(home)
    assert [one.manifest.version for one in home.list()] == ["0.0.6", "0.0.5"]


def test_all_stay_without_a_number(home, config, state) -> None:
    stream = home.live("agent@base-7b", config=config, keep=None)
    for step in range(8):
        stream.publish(state(step), step=step)
    assert len(versions(home)) == 8


def test_what_is_needed_stays(home, config, state, tmp_path) -> None:
    stream = home.live("agent@base-7b", config=config, keep=1)
    leased = stream.publish(state(0), step=0).build
    named = stream.publish(state(1), step=1)  # the first would be gone by now
    assert versions(home) == ["0.0.2"]
    home.set_alias("best", named.spec)
    with home.lease(named.build):
        stream.publish(state(2), step=2)
        home.remove_alias("agent@best")
        third = stream.publish(state(3), step=3)
        assert versions(home) == ["0.0.2", "0.0.4"]
    stream.publish(state(4), step=4)
    assert versions(home) == ["0.0.5"]
    assert not leased.folder.exists()
    assert third.version == "0.0.4"


def test_what_a_project_locks_stays(home, config, state, tmp_path) -> None:
    from adapterhub import Project

    stream = home.live("agent@base-7b", config=config, keep=1)
    stream.publish(state(0), step=0)
    project = Project.create(tmp_path / "work", base="base-7b", library=home)
    project.install("agent==0.0.1")
    for step in (1, 2):
        stream.publish(state(step), step=step)
    assert versions(home) == ["0.0.1", "0.0.3"]


def test_other_versions_of_the_adapter_are_let_alone(home, stream, state, folder) -> None:
    home.add(folder, name="agent", version="0.0.1", base="base-7b")
    stream.keep = 1
    found = [stream.publish(state(step), step=step).version for step in (1, 2, 3)]
    assert found == ["0.0.2", "0.0.3", "0.0.4"]
    assert versions(home) == ["0.0.1", "0.0.4"]


def test_two_streams_of_one_adapter_keep_their_own(home, config, state) -> None:
    live = home.live("agent@base-7b", config=config, keep=1)
    held_out = home.live("agent@base-7b", config=config, alias="trial", keep=1)
    for step in range(3):
        live.publish(state(step), step=step)
        held_out.publish(state(10 + step), step=step)
    assert versions(home) == ["0.0.5", "0.0.6"]
    assert home.alias("agent@live").text() == "0.0.5"
    assert home.alias("agent@trial").text() == "0.0.6"


def test_a_rollback_to_a_version_that_is_gone_is_refused(home, config, state) -> None:
    stream = home.live("agent@base-7b", config=config, keep=2)
    for step in range(4):
        stream.publish(state(step), step=step)
    assert home.roll_back_alias("agent@live").text() == "0.0.3"
    with pytest.raises(AdapterNotFound, match=r"0\.0\.1"):
        home.roll_back_alias("agent@live", to=1)
    assert stream.publish(state(9), step=9).version == "0.0.5"
    assert stream.current().manifest.version == "0.0.5"


# ---------------------------------------------------------------- gates
def test_a_gate_keeps_the_alias_and_says_why(home, config, state) -> None:
    seen = []

    def gate(candidate):
        seen.append((candidate.version, home.alias("agent@live").text() if candidate.step else ""))
        return {0: True, 1: "reward 0.1 is below 0.3", 2: False, 3: None}[candidate.step]

    stream = home.live("agent@base-7b", config=config, gate=gate)
    found = [stream.publish(state(step), step=step) for step in range(4)]

    assert seen == [("0.0.1", ""), ("0.0.2", "0.0.1"), ("0.0.3", "0.0.1"), ("0.0.4", "0.0.1")]
    assert [one.refused for one in found] == [None, "reward 0.1 is below 0.3", "the gate refused it", None]
    assert home.alias("agent@live").text() == "0.0.4"
    assert versions(home) == ["0.0.1", "0.0.2", "0.0.3", "0.0.4"]  # a refused one can be looked at
    assert [(e.kind, e.version, e.why) for e in stream.events()] == [
        ("moved", "0.0.1", None),
        ("refused", "0.0.2", "reward 0.1 is below 0.3"),
        ("refused", "0.0.3", "the gate refused it"),
        ("moved", "0.0.4", None),
    ]
    assert [e.version for e in stream.events(after=stream.events()[1].place)] == ["0.0.3", "0.0.4"]
    assert stream.events()[1].to_json().keys() == {"kind", "version", "digest", "time", "why"}
    assert found[1].to_json()["refused"] == "reward 0.1 is below 0.3"
    assert "refused" not in found[0].to_json()


def test_a_first_version_can_be_refused(home, config, state) -> None:
    stream = home.live("agent@base-7b", config=config, gate=lambda _: "no")
    assert not stream.publish(state(0), step=0).is_current
    assert stream.target() is None
    assert stream.current() is None
    assert [e.kind for e in stream.events()] == ["refused"]
    assert home.list_aliases() == []


def test_a_gate_that_cannot_tell_refuses(home, config, state) -> None:
    def gate(candidate):
        raise NotADirectoryError("gone") if candidate.step else UsageProblem("no examples")

    stream = home.live("agent@base-7b", config=config, gate=gate)
    found = [stream.publish(state(step), step=step) for step in (0, 1)]
    assert [one.refused for one in found] == [
        "the gate could not tell: no examples",
        "the gate could not tell: NotADirectoryError('gone')",
    ]
    assert [event.why for event in stream.events()] == [one.refused for one in found]
    stream.gate = None
    assert stream.publish(state(2), step=2).version == "0.0.3"


def test_others_publish_while_a_gate_runs_and_the_later_version_stays_current(home, config, state) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def gate(candidate) -> bool:
        begun.set()
        return may_end.wait(60) and candidate.folder.is_dir()

    first = home.live("agent@base-7b", config=config, keep=1, gate=gate)
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(first.publish, state(1), step=1)
        try:
            assert begun.wait(60)
            other = home.live("agent@base-7b", config=config, keep=1)
            assert other.publish(state(2), step=2).version == "0.0.2"
            assert versions(home) == ["0.0.1", "0.0.2"]  # leased while its gate runs
        finally:
            may_end.set()
        assert slow.result().refused == "0.0.2 became current while the gate was asked"
    assert home.alias("agent@live").text() == "0.0.2"
    assert [event.kind for event in first.events()] == ["moved", "refused"]
    assert first.publish(state(3), step=3).is_current
    assert versions(home) == ["0.0.3"]


def test_the_manifest_of_an_old_version_is_read_once(home, config, state, monkeypatch) -> None:
    stream = home.live("agent@base-7b", config=config, keep=1)
    for step in range(3):
        home.set_alias(f"best-{step}", stream.publish(state(step), step=step).spec)
    read = []
    readable_in = Library.readable_in
    monkeypatch.setattr(
        Library, "readable_in", lambda self, folders: read.extend(folders) or readable_in(self, folders)
    )
    for step in range(3, 6):
        stream.publish(state(step), step=step)

    assert len(read) == len(set(read))
    assert versions(home) == ["0.0.1", "0.0.2", "0.0.3", "0.0.6"]
    home.remove_alias("agent@best-1")
    stream.publish(state(6), step=6)
    assert versions(home) == ["0.0.1", "0.0.3", "0.0.7"]


# ---------------------------------------------------------------- what is refused changes nothing
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda _: {}, UsageProblem),
        (lambda s: {name: value * np.float32("nan") for name, value in s.items()}, RefusedAdapter),
        (lambda s: {name: value * np.float32("inf") for name, value in s.items()}, RefusedAdapter),
        (lambda s: dict(itertools.islice(s.items(), 1)), RefusedAdapter),
        (lambda s: {name: value[:, :4] if "lora_A" in name else value for name, value in s.items()}, BaseMismatch),
        (lambda s: {name: value.astype(complex) for name, value in s.items()}, UsageProblem),
        (lambda s: {name: value.tolist() for name, value in s.items()}, UsageProblem),
        (lambda s: {name.encode(): value for name, value in s.items()}, UsageProblem),
        (lambda s: {f"x.{name}": value for name, value in s.items()}, RefusedAdapter),
        (lambda _: 3, UsageProblem),
    ],
)
def test_a_bad_state_changes_nothing(home, stream, state, change, error) -> None:
    stream.publish(state(0), step=0)
    before = files_in(home)
    with pytest.raises(error) as refused:
        stream.publish(change(state(1)), step=1)
    assert files_in(home) == before
    assert "Nothing was" in str(refused.value)
    assert stream.publish(state(2), step=2).version == "0.0.2"


@pytest.mark.parametrize("step", [-1, 1.5, True, None, "3"])
def test_a_step_is_a_number(stream, state, step) -> None:
    with pytest.raises(UsageProblem, match="step"):
        stream.publish(state(0), step=step)


def test_metrics_are_json(home, stream, state) -> None:
    from adapterhub.core.errors import Malformed

    with pytest.raises((Malformed, UsageProblem)):
        stream.publish(state(0), step=0, metrics={"loss": float("nan")})
    assert versions(home) == []
    assert stream.publish(state(0), step=0).version == "0.0.1"


def test_a_state_dict_needs_a_config(home, state, config) -> None:
    with pytest.raises(UsageProblem, match="config"):
        home.live("agent@base-7b").publish(state(0), step=0)
    with pytest.raises(UsageProblem, match="config"):
        home.live("agent@base-7b", config=3)
    with pytest.raises(UsageProblem, match="JSON"):
        home.live("agent@base-7b", config={"r": object()})
    with pytest.raises(UsageProblem, match="JSON"):
        home.live("agent@base-7b", config={"r": float("nan")})


def test_a_stream_is_one_adapter_and_one_base(home, tmp_path) -> None:
    for spec in ("agent", "agent@base-7b==1.0", "agent@base-7b#sha256:aaaaaaaa"):
        with pytest.raises(UsageProblem):
            home.live(spec)
    with pytest.raises(UsageProblem):
        home.live("agent@base-7b", base="base-7b")
    with pytest.raises(Conflict, match="is a base"):
        home.live("agent@base-7b", alias="base-7b")
    with pytest.raises(SpecError):
        home.live("agent@base-7b", alias="1.0")
    with pytest.raises(UsageProblem):
        home.live("agent@base-7b", keep=0)
    home.add_base(make_base(tmp_path / "second", seed=5), "second")
    assert home.live("agent", base="second").base.alias == "second"
    assert not (home.root / "aliases").exists()


def test_an_alias_of_another_base_is_not_taken(home, config, state, tmp_path) -> None:
    home.add_base(make_base(tmp_path / "second", seed=5), "second")
    home.live("agent@base-7b", config=config).publish(state(0), step=0)
    with pytest.raises(Conflict, match="another base"):
        home.live("agent@second", config=config).publish(state(0), step=0)
    assert home.live("agent@second", config=config, alias="second-live").publish(state(0), step=0).is_current


def test_a_full_disk_leaves_the_version_before(home, stream, state, monkeypatch) -> None:
    stream.publish(state(0), step=0)
    before = files_in(home)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    was = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, limit[1]))
    try:
        with pytest.raises(DiskFull):
            stream.publish(state(1), step=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, was)
    assert files_in(home) == before


# ---------------------------------------------------------------- together
def test_threads_publish_one_after_the_other(home, config, state) -> None:
    stream = home.live("agent@base-7b", config=config, keep=None)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda step: stream.publish(state(step), step=step), range(12)))
    assert sorted(int(one.version.rpartition(".")[2]) for one in found) == list(range(1, 13))
    assert [e.version for e in stream.events()] == [f"0.0.{n}" for n in range(1, 13)]


def test_processes_publish_one_after_the_other(home, config, state) -> None:
    children = []
    for number in range(3):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                stream = Library(home.root).live("agent@base-7b", config=config, keep=3)
                for step in range(5):
                    stream.publish(state(10 * number + step), step=step, sync=step % 2 == 0)
                stream.close()
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]
    stream = home.live("agent@base-7b", config=config)
    assert [e.version for e in stream.events()] == [f"0.0.{n}" for n in range(1, 16)]
    assert versions(home) == ["0.0.13", "0.0.14", "0.0.15"]
    assert sound(home)


def test_a_follower_in_another_process_reads_it_at_once(home, config, state) -> None:
    stream = home.live("agent@base-7b", config=config)
    for step in range(4):
        published = stream.publish(state(step), step=step, sync=False)
        seen = Library(home.root).live("agent@base-7b")
        assert seen.target().digest == published.digest
        assert seen.current().manifest.digest == published.digest
    stream.close()


# ---------------------------------------------------------------- cost
def test_memory_is_at_most_one_copy(home, tmp_path) -> None:
    """The state is a copy already; publishing it may take one more, and takes the largest tensor."""
    library = Library(tmp_path / "large")
    library.add_base(make_base(tmp_path / "wide", width=2048), "wide")
    folder = make_adapter(tmp_path / "large-agent", width=2048, rank=512)
    import json

    stream = library.live("agent@wide", config=json.loads((folder / "adapter_config.json").read_text()))
    state = load_file(folder / "adapter_model.safetensors")
    size = sum(value.nbytes for value in state.values())
    stream.publish(state, step=0)
    state = {name: value + 1 for name, value in state.items()}
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        stream.publish(state, step=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size > 16 << 20
    assert peak - before < size


def test_a_stream_writes_nothing_before_it_publishes(home, config) -> None:
    before = files_in(home)
    stream: LiveStream = home.live("agent@base-7b", config=config)
    assert stream.target() is None
    assert stream.events() == []
    assert files_in(home) == before
    assert "agent@live" in repr(stream)


def test_names_resolve_as_ever(home, stream, state) -> None:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.choosing import find_installed

    stream.publish(state(0), step=0)
    spec = AdapterSpec.parse("agent@live")
    assert find_installed(home, spec, wanted=wanted_from(home, spec, None))[0].manifest.version == "0.0.1"
    assert isinstance(home.root, Path)


def test_a_publisher_that_waits_for_another_one_says_so(home, config, state, monkeypatch) -> None:
    monkeypatch.setattr("adapterhub.live.stream.WAIT_S", 0.1)

    def gate(_: object) -> None:
        held.enter_context(home.store.lock("live-agent", exclusive=True))

    gated = home.live("agent@base-7b", config=config, gate=gate)
    with contextlib.ExitStack() as held:
        with (
            home.store.lock("live-agent", exclusive=True),
            pytest.raises(StoreLocked, match=f"process {os.getpid()}.* Nothing was published"),
        ):
            gated.publish(state(1), step=1)
        assert versions(home) == []
        with pytest.raises(StoreLocked, match=r"`agent==0\.0\.1` is installed, and did not become current") as refused:
            gated.publish(state(1), step=1)
    assert refused.value.hint.startswith('`Library.set_alias("live", "agent==0.0.1")`')
    assert gated.target() is None
