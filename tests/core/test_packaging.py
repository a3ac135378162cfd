"""What a release holds: the wheel and the source archive, as `python -m build` makes them."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from adapterhub.cli import ALIASES, COMMANDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CONDA_NAMES = {"huggingface-hub": "huggingface_hub", "typing-extensions": "typing_extensions"}
VENDORED = ("htmx-4.0.1.min.js", "pico-2.1.1.min.css")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    from hatchling.build import build_wheel

    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return zipfile.ZipFile(folder / build_wheel(str(folder)))


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    tops = {name.partition("/")[0] for name in names}

    assert tops == {"adapterhub", "adapterhub_registry", "adapterhub-0.1.0.dist-info"}
    for package, folder in (("adapterhub", ROOT), ("adapterhub_registry", ROOT / "registry")):
        sources = {path.relative_to(folder).as_posix() for path in (folder / package).rglob("*.py")}
        assert sources == {name for name in names if name.startswith(f"{package}/") and name.endswith(".py")}
    assert not [name for name in names if "test" in Path(name).name and not name.startswith("adapterhub")]


def test_the_wheel_brings_the_licences_of_vendored_parts(wheel: zipfile.ZipFile) -> None:
    held = {Path(name).name for name in wheel.namelist() if ".dist-info/licenses/" in name}
    metadata = wheel.read("adapterhub-0.1.0.dist-info/METADATA").decode()

    assert held == {"LICENSE", "htmx.LICENSE.txt", "pico.LICENSE.txt"}
    assert "License-Expression: Apache-2.0 AND 0BSD AND MIT" in metadata
    assert [name for name in wheel.namelist() if Path(name).name in VENDORED] == [
        f"adapterhub/pages/static/{name}" for name in VENDORED
    ]


def test_the_command_has_the_name_of_the_package_too(wheel: zipfile.ZipFile) -> None:
    points = configparser.ConfigParser()
    points.read_string(wheel.read("adapterhub-0.1.0.dist-info/entry_points.txt").decode())

    assert points["console_scripts"]["adapt"] == points["console_scripts"]["adapterhub"] == "adapterhub.cli:main"


def test_the_source_archive_can_build_and_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hatchling.build import build_sdist

    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / build_sdist(str(tmp_path))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {"pyproject.toml", "README.md", "LICENSE", "adapterhub/__init__.py", "tests/conftest.py", ".ci/run"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", "shared"))]


def test_every_command_has_a_manual_page(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "docs.man", str(tmp_path)], cwd=ROOT, check=True)

    pages = {path.stem for path in tmp_path.glob("*.1")}
    assert {f"adapt-{name}" for name in COMMANDS if name not in ALIASES} | {"adapt", "adapt-base-add"} <= pages
    merge = (tmp_path / "adapt-merge.1").read_text(encoding="utf-8")
    assert "weighted sum of their updates" in merge
    assert "\b" not in merge


def test_the_conda_recipe_asks_for_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    recipe = yaml.safe_load((ROOT / "docs/deploy/conda/recipe.yaml").read_text(encoding="utf-8"))
    wanted = [line.partition(";")[0] for line in project["project"]["dependencies"]]

    assert recipe["requirements"]["run"] == [
        "python >=3.10",
        *(
            CONDA_NAMES.get(name := re.split("[<>=]", line)[0], name) + " " + line[len(name) :].strip()
            for line in wanted
        ),
    ]
    assert recipe["context"]["version"] == project["project"]["version"]
    assert recipe["about"]["license"] == project["project"]["license"]
    assert recipe["build"]["python"]["entry_points"] == [
        f"{name} = {value}" for name, value in project["project"]["scripts"].items()
    ]
    assert project["build-system"]["requires"] == [recipe["requirements"]["host"][-1].replace(" ", "")]
