"""The comparison of two checkouts finds equal answers of the same code, and tells where answers part."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="needs psutil")

from tests.bench import registry_growth
from tests.bench.registry_against import compare, difference, steady
from tests.registry.shared_servers import ROOT


def test_the_same_code_gives_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry_growth, "KEPT", tmp_path)
    differing = compare(ROOT, 200, 1, "page of a")
    printed = capsys.readouterr().out
    assert differing == {}
    assert "page of all members" in printed
    assert "4 have equal answers" in printed
    assert [one.name for one in tmp_path.iterdir()] == ["sqlite-200"]


def test_what_a_server_draws_anew_is_no_difference_and_a_number_is() -> None:
    assert steady("<a href=http://127.0.0.1:80/>") == steady("<a href=http://127.0.0.1:81/>")
    assert steady('name="form_token" value="ab">7') != steady('name="form_token" value="cd">8')
    assert difference("rank 8", "rank 16") == "'rank 8' != 'rank 16'"
