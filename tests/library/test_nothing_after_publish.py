"""Everything that can refuse a build comes before it is published: after an error the library is as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import adapterhub
from adapterhub.core.errors import AdapterHubError
from tests.attacks.test_links import content_of
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter

WRONG: dict[str, dict[str, Any]] = {
    "a number as task": {"task": 5},
    "bytes as task": {"task": b"x"},
    "a long task": {"task": "x" * 70_000},
    "a task that no manifest could hold": {"task": "x" * 20_000_000},
    "a number as description": {"description": 5},
    "a long description": {"description": "x" * 70_000},
    "half of a pair": {"description": "\ud800"},
    "a number as licence": {"license": 5},
    "a long licence": {"license": "x" * 70_000},
    "an object in metrics": {"metrics": {"a": object()}},
    "NaN in metrics": {"metrics": {"a": float("nan")}},
    "a number as metrics": {"metrics": 5},
    "a number as key": {"metrics": {5: 1}},
    "a huge number": {"metrics": {"a": 2**60}},
    "a long example": {"examples": "x" * 600},
    "a number as example": {"examples": [5]},
    "a number as prompt": {"prompt": 5},
}


def durable(home: Path) -> dict[str, str]:
    return {k: v for k, v in content_of(home).items() if k.split("/")[0] not in ("locks", "tmp", "intents")}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("with_card", [False, True])
def test_a_description_that_no_manifest_may_hold_is_refused_and_leaves_nothing(
    tmp_path: Path, case: str, *, with_card: bool
) -> None:
    adapt, made = Adapt(tmp_path), make_adapter(tmp_path / "made")
    if with_card:
        (made / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n\n# Mine\n")
    adapt.ok("add", made, "--name", "other")
    library, before = adapterhub.Library(tmp_path / "home"), durable(tmp_path / "home")

    with pytest.raises(AdapterHubError):
        library.add(made, **{"name": "x", **WRONG[case]})

    assert durable(tmp_path / "home") == before
    assert library.add(made, name="x").created, "the name is free"


@pytest.mark.parametrize("option", ["--task", "--description", "--license"])
def test_the_command_refuses_a_long_text_and_leaves_nothing(tmp_path: Path, option: str) -> None:
    adapt = Adapt(tmp_path)
    make_adapter(tmp_path / "made")

    said = adapt.fails(2, "add", "made", option, "x" * 70_000)

    assert "has 70,000 characters, expected at most" in said
    assert adapt.json("list") == []


def test_metadata_that_a_hub_would_refuse_warns_and_the_build_is_added(tmp_path: Path) -> None:
    """The card that we make has more keys than the author's, so that the author's alone may have had room."""
    adapt, made = Adapt(tmp_path), make_adapter(tmp_path / "made")
    many = "".join(f"key{n}: {'x' * 60}\n" for n in range(960))
    (made / "README.md").write_text(f"---\n{many}---\n\n# Mine\n")

    done = adapt("add", "made", "--name", "x", "--task", "y" * 200)

    assert done.exit_code == 0, done.stderr
    assert [row["name"] for row in adapt.json("list")] == ["x"]
