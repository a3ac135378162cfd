"""A user's own defaults for tests: kept in the library, and never loosened by a project."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.core.errors import Malformed, UsageProblem
from adapterhub.formats.contract.standards import Standards
from adapterhub.library.own_settings import OwnSettings, set_own_tests
from adapterhub.projects.session import Session


def test_what_is_given_changes_and_the_rest_stays(tmp_path: Path) -> None:
    set_own_tests(tmp_path, "require", bounds={"same": 0.95})
    set_own_tests(tmp_path, max_age="90d")
    found = set_own_tests(tmp_path, bounds={"kl": 0.02})

    assert found == Standards(policy="require", max_age="90d", bounds={"same": 0.95, "kl": 0.02})
    assert OwnSettings(tmp_path).read() == found
    assert set_own_tests(tmp_path, reset=True) == Standards() == OwnSettings(tmp_path).read()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"policy": "always"}, "expected one of off, warn, require"),
        ({"max_age": "2026-01-01"}, "expected an age such as `90d`"),
        ({"bounds": {"some": 1}}, "no bound `some`"),
        ({"bounds": {"same": float("nan")}}, "expected a number from 0 to 1"),
    ],
)
def test_a_value_that_cannot_be_meant_changes_nothing(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    set_own_tests(tmp_path, "warn")

    with pytest.raises(UsageProblem, match=said):
        set_own_tests(tmp_path, **changed)  # type: ignore[arg-type]
    assert OwnSettings(tmp_path).read() == Standards(policy="warn")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"tests": {"policy": 1}}', '{"tests": {"by": []}}', '{"tests": {"bounds": {"same": "x"}}}'],
)
def test_a_damaged_file_is_refused_and_a_reset_mends_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)

    with pytest.raises(Malformed, match=r"config\.json"):
        OwnSettings(tmp_path).read()
    assert set_own_tests(tmp_path, "warn", reset=True) == Standards(policy="warn")


def test_the_stricter_of_both_holds_in_each_part() -> None:
    project = Standards(policy="warn", by=("ann",), max_age="30d", bounds={"same": 0.9, "kl": 0.01})
    own = Standards(policy="require", max_age="2w", bounds={"same": 0.95, "kl": 0.05, "cosine": 0.9})

    both = project.and_own(own)

    assert both == Standards(
        policy="require", by=("ann",), max_age="2w", bounds={"same": 0.95, "kl": 0.01, "cosine": 0.9}
    )
    assert Standards(policy="require").and_own(Standards(policy="off")).policy == "require"


def test_a_session_asks_what_its_user_and_its_project_ask(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "adapters.toml").write_text('[policy]\ntests = "warn"\ntests-bounds = { same = 0.8 }\n')
    set_own_tests(tmp_path / "home", bounds={"same": 0.95})
    session = Session(root=tmp_path / "home", project_dir=tmp_path / "project")

    assert session.standards == Standards(policy="warn", bounds={"same": 0.95})
    assert session.project_bounds() == {"same": 0.95}
