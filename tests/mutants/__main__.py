"""Mutation tests of the code that decides about trust.

    pip install -e '.[dev,mutants]'
    python -m tests.mutants signing [--sample 20] [--children 2]

A target is a set of modules and the tests that must notice a change in them. mutmut changes one thing in one function, many
thousand times, and runs the tests that reach that function. We chose it over cosmic-ray because it forks a process that has
everything imported; cosmic-ray starts pytest for each mutant. A mutant that `mypy --strict` refuses counts as killed: CI runs it.

The report prints each survivor as a diff. `survivors.toml` lists those that no test can kill, each with its reason. The exit
code is 1 when tests and types kill fewer than 90 %, or when a survivor has no reason there. `--sample 20` takes every fifth
mutant. A whole target takes an hour or more on two cores, so CI does not run this.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tomli_w

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent.parent
LEAST_KILLED = 0.9
SURVIVORS = Path(__file__).with_name("survivors.toml")

STATES = {0: "survived", 1: "killed", 3: "killed", 33: "no test", 5: "no test", 37: "killed by types", None: "not run"}
"""What mutmut's exit codes mean; any other is a time-out or a crash, which a test notices."""

PROSE = [
    r'^\s*(raise \w+\()?\w*(hint|text|message|what|problem)?\s*=?\s*\(?f?"[^"]* [^"]*"[,)]*$',  # a line of text for people
]
"""Lines that are not mutated: the wording of messages is no decision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Modules to mutate, as paths in the tree of mutants, and the tests to run on them."""

    modules: tuple[str, ...]
    package: str = "adapterhub"
    tests: tuple[str, ...]


TARGETS = {
    "signing": Target(
        modules=("adapterhub/trust/signing/*", "adapterhub/library/admission.py"),
        tests=(
            "tests/trust/test_signing.py",
            "tests/trust/test_signing_history.py",
            "tests/trust/test_signing_tamper.py",
            "tests/trust/test_signing_words.py",
            "tests/trust/test_signing_files.py",
            "tests/trust/test_trust_files.py",
            "tests/trust/test_signing_making.py",
            "tests/library/test_admission_words.py",
            "tests/attacks/test_admission.py",
            "tests/attacks/test_permissions.py",
            "tests/attacks/test_unsigned_extras.py",
            "tests/trust/test_results.py",
            "tests/trust/test_statements.py",
            "tests/attacks/test_claimed_names.py",
            "tests/attacks/test_revoked_keys.py::test_what_a_revoked_key_signed_is_refused_under_every_policy_with_the_reason",
            "tests/attacks/test_revoked_keys.py::test_a_revoked_key_is_not_trusted_again_and_signs_nothing",
        ),
    ),
    "verify": Target(
        modules=("adapterhub/trust/verify/*",),
        tests=(
            "tests/trust/test_verify.py",
            "tests/trust/test_verify_numbers.py",
            "tests/trust/test_verify_words.py",
            "tests/trust/test_verify_file_words.py",
            "tests/formats/test_precision.py",
            "tests/core/test_held_file.py",
            "tests/core/test_bad_inputs.py",
        ),
    ),
    "hub": Target(
        modules=tuple(f"adapterhub/distribution/http/{name}.py" for name in ("wire", "stream")),
        tests=(
            "tests/distribution/test_wire_words.py",
            "tests/distribution/test_network_faults.py",
            "tests/attacks/test_redirects.py",
            "tests/attacks/test_proxies.py",
        ),
    ),
    "registry": Target(
        modules=tuple(
            f"adapterhub_registry/{name}.py"
            for name in (
                "access/tokens",
                "repos/commits",
                "repos/adapters",
                "repos/aliases",
                "repos/repos",
            )
        ),
        package="adapterhub_registry",
        tests=(
            "tests/registry/test_tokens.py",
            "tests/registry/test_link_signatures.py",
            "tests/registry/test_repos.py",
            "tests/registry/test_commits.py",
            "tests/registry/test_released_versions.py",
            "tests/registry/test_access.py",
            "tests/registry/test_tombstones.py",
            "tests/attacks/test_registry_access.py",
            "tests/attacks/test_released_names.py",
            "tests/attacks/test_registry_private.py",
        ),
    ),
}


def lay_out(target: Target, folder: Path) -> None:
    """Copy the tree so that both packages lie at its top, where `mutmut` finds them by their import names."""
    shutil.copytree(ROOT / "adapterhub", folder / "adapterhub", ignore=shutil.ignore_patterns("__pycache__"))
    package = "adapterhub_registry"
    shutil.copytree(ROOT / "registry" / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "mutants").mkdir()
    (folder / "mutants" / "registry").symlink_to(".")
    settings = {
        "source_paths": ["adapterhub", package],
        "only_mutate": list(target.modules),
        "do_not_mutate_patterns": PROSE,
        "pytest_add_cli_args_test_selection": list(target.tests),
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-p", "no:xdist"],
        "type_check_command": [
            sys.executable,
            "-m",
            "mypy",
            "--output",
            "json",
            "--disable-error-code",
            "unused-ignore",
            "--disable-error-code",
            "no-redef",
            "-p",
            target.package,
        ],
        "timeout_multiplier": 8.0,
        "timeout_constant": 5.0,
        "use_git_change_detection": False,
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project["tool"]["mutmut"] = settings
    del project["tool"]["mypy"]["files"]
    project["tool"]["mypy"]["mypy_path"] = "."
    (folder / "pyproject.toml").write_text(tomli_w.dumps(project))


def run(folder: Path, sample: int, children: int) -> None:
    """Run mutmut in a laid-out tree; what it finds stays there, and a second run goes on from it."""
    last_digits = "0123456789"[: sample // 10]
    names = [] if sample == 100 else [f"*__mutmut_*[{last_digits}]"]
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(children), *names]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def results(folder: Path) -> dict[str, str]:
    """The state of each mutant that was run, by its name."""
    found: dict[str, str] = {}
    packages = ("adapterhub", "adapterhub_registry")  # and not `registry`, a link to where both lie
    for path in sorted(meta for name in packages for meta in (folder / "mutants" / name).rglob("*.py.meta")):
        for name, code in json.loads(path.read_text())["exit_code_by_key"].items():
            state = STATES.get(code, "killed")
            if state != "not run":
                found[name] = state
    return found


def changes(folder: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    """Each mutant's function and its change: the lines of its diff that begin with `-` and `+`."""
    for name in names:
        command = [sys.executable, "-m", "mutmut", "show", name]
        shown = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
        lines = [line for line in shown.splitlines() if line[:1] in "-+" and line[:3] not in {"---", "+++"}]
        yield (
            name.partition("__mutmut_")[0].replace(".x_", "."),
            "\n".join(f"{line[0]} {line[1:].strip()}" for line in lines),
        )


def report(folder: Path) -> int:
    """Print the count and the survivors; the exit code."""
    states = results(folder)
    counts = Counter(states.values())
    killed = counts["killed"] + counts["killed by types"]
    print(f"{len(states)} mutants: {', '.join(f'{n} {state}' for state, n in counts.most_common())}")
    print(f"killed: {killed / len(states):.1%}")
    reasons = {
        (s["function"], s["change"].strip()): s["reason"] for s in tomllib.loads(SURVIVORS.read_text())["survivor"]
    }
    unexplained = 0
    for function, change in changes(
        folder, [name for name, state in states.items() if state in {"survived", "no test"}]
    ):
        reason = reasons.get((function, change))
        unexplained += reason is None
        print(f"\n{function}: {reason or 'NOT EXPLAINED'}\n{change}")
    print(f"\n{unexplained} survivors without a reason in {SURVIVORS.name}")
    return int(unexplained > 0 or killed < LEAST_KILLED * len(states))


def main() -> int:
    """Run one target and report."""
    parser = argparse.ArgumentParser(description="Mutation tests of the code that decides about trust.")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--sample", type=int, default=100, choices=range(10, 101, 10), metavar="PERCENT")
    parser.add_argument("--children", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the mutants lie; one that exists goes on where it ended")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="mutants-")) / "tree"
    if not folder.exists():
        folder.mkdir(parents=True)
        lay_out(TARGETS[args.target], folder)
    print(f"mutants are in {folder}", flush=True)
    run(folder, args.sample, args.children)
    return report(folder)


if __name__ == "__main__":
    sys.exit(main())
