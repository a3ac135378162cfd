"""The audit log: one line each, through rotations, full disks and more requests than the disk can follow."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from adapterhub.core.errors import NotAllowed
from adapterhub.inference.serving.access.gate import AskedName, AuditLog, stamp
from adapterhub.inference.serving.answers import described, kind_in, with_field
from tests.inference.test_serve_llama import wait_until


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_lines_are_appended_in_order_and_all_are_there_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    path.write_text('{"at": -1}\n')

    with AuditLog(str(path)) as log:
        for at in range(3000):
            log.write({"at": at})

    assert [line["at"] for line in lines(path)] == list(range(-1, 3000))


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    with AuditLog(str(tmp_path / "audit")):
        assert (tmp_path / "audit").stat().st_mode & 0o777 == 0o600


def test_a_file_that_was_moved_or_deleted_is_made_anew(tmp_path: Path) -> None:
    path, old = tmp_path / "audit", tmp_path / "audit.1"

    with AuditLog(str(path)) as log:
        log.write({"at": 0})
        wait_until(lambda: bool(lines(path)))
        path.rename(old)
        log.write({"at": 1})
        wait_until(lambda: bool(lines(path)))
        path.unlink()
        log.write({"at": 2})

    assert (lines(old), lines(path)) == ([{"at": 0}], [{"at": 2}])


def test_what_does_not_fit_is_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = AuditLog(str(path), most_waiting=3)
    for at in range(10):
        log.write({"at": at})
    with log:
        pass

    dropped, *kept = lines(path)
    assert dropped["dropped"] == 7
    assert [line["at"] for line in kept] == [0, 1, 2]


def test_a_full_disk_loses_lines_and_no_later_line_is_torn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    with AuditLog(str(path)) as log:
        log.write({"at": 0})
        wait_until(lambda: bool(lines(path)))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, hard))
            log.write({"at": 1})
            wait_until(lambda: "the audit log loses lines" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        log.write({"at": 2})

    first, torn, dropped, last = path.read_text().splitlines()
    assert [json.loads(first), json.loads(last)] == [{"at": 0}, {"at": 2}]
    assert torn == '{"at"'
    assert json.loads(dropped)["dropped"] == 1


@pytest.mark.parametrize("kind", ["folder", "fifo", "in no folder"])
def test_a_place_that_cannot_be_a_log_is_refused_before_anything_starts(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path = path / "log"

    with pytest.raises(NotAllowed, match="audit log"):
        AuditLog(str(path))


def test_a_time_is_in_utc_to_the_millisecond() -> None:
    assert (stamp(0.0), stamp(1_777_636_800.1239)) == ("1970-01-01T00:00:00.000Z", "2026-05-01T12:00:00.123Z")


# ---------------------------------------------------------------- answers
@pytest.mark.parametrize(
    ("event", "made"),
    [
        (b'data: {"a":1}\n\n', b'data: {"x":1, "a":1}\n\n'),
        (b'event: m\ndata: {"a":1}\n\n', b'event: m\ndata: {"x":1, "a":1}\n\n'),
        (b"data: {}\n\n", b'data: {"x":1}\n\n'),
        (b"data: [DONE]\n\n", None),
        (b": ping\n\n", None),
        (b'{"a":"data: {"}', None),
    ],
)
def test_an_event_gets_a_field_without_being_parsed(event: bytes, made: bytes | None) -> None:
    assert with_field(event, b'"x":1') == made


def test_the_field_of_an_adapter_is_json() -> None:
    assert json.loads(b"{" + described('a"b', "sha256:1", "sha256:2") + b"}") == {
        "adapter": {"name": 'a"b', "digest": "sha256:1", "base": "sha256:2"}
    }


def test_an_error_in_another_form_has_no_type() -> None:
    assert [kind_in(data) for data in (b'{"error":{"type":"T"}}', b'{"error":"x"}', b"[1]", b"\xff", b'{"error":{"type":1}}')] == [
        "T", None, None, None, None
    ]  # fmt: skip


def test_a_client_that_leaves_early_is_charged_an_estimate() -> None:
    asked = AskedName(route="/v1/completions", request_id="1")
    nothing = asked.tokens
    asked.begins(400)
    for _ in range(7):
        asked.events += 1

    assert (nothing, asked.tokens) == (0, 107)
    asked.status = 404
    assert asked.tokens == 0
