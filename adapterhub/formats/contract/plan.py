"""`tests.toml`: what an author wants asked and demands, from which a contract is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from adapterhub.core.disk.nearest import read_typed
from adapterhub.core.errors import Malformed, problem_list, shown
from adapterhub.formats.contract.bounds import DEFAULT_BOUNDS, Bounds
from adapterhub.formats.contract.contract import DEFAULT_RISE, Asked, Expect, LeaveAlone
from adapterhub.formats.contract.demands import KEYS
from adapterhub.formats.contract.reader import MAX_LINES, MAX_SEED, MAX_STEPS, ContractReader
from adapterhub.formats.documents import TOML_KINDS, toml_of
from adapterhub.formats.prompts.form import PromptForm

MAX_PLAN_BYTES: Final = 1 << 20
_TOP: Final = ("prompt", "bounds", "image", "golden", "expect", "leave_alone", "never")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An input to ask; `completion` is the answer that the author wants, where one is known; `seed` is for an image."""

    id: str
    asked: Asked
    completion: str | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedImages:
    """How a pipeline is to draw; None: the default of the recording."""

    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to record: inputs, demands, prompts to leave alone, bounds, and the prompt form if the file names one.

    `image` is there if the file has such a table.
    """

    goldens: tuple[Wanted, ...] = ()
    expects: tuple[Expect, ...] = ()
    leave_alone: tuple[LeaveAlone, ...] = ()
    bounds: Bounds = DEFAULT_BOUNDS
    prompt: PromptForm | None = None
    image: WantedImages | None = None


def read_plan(path: Path) -> Plan:
    """The plan in a `tests.toml`.

    Raises:
        NotFound: there is no such file.
        Malformed: it is no TOML, or breaks the form; names every problem with its place.
    """
    where = shown(str(path), 200)
    raw = read_typed(path, MAX_PLAN_BYTES)
    if len(raw) > MAX_PLAN_BYTES:
        raise Malformed(f"{where}: more than {MAX_PLAN_BYTES >> 20} MB of tests")
    try:
        value = toml_of(raw)
    except ValueError as error:
        raise Malformed(f"{where}: {error}") from None
    reader = _PlanReader()
    plan = reader.plan(value)
    if reader.problems:
        hint = "each `[[golden]]`, `[[expect]]`, `[[leave_alone]]` and `[[never]]` has an `input`"
        raise Malformed(problem_list(f"{where}: not a plan of tests", reader.lines), hint=hint)
    return plan


class _PlanReader(ContractReader):
    kinds: ClassVar[Mapping[type, str]] = TOML_KINDS

    def plan(self, top: dict[str, Any]) -> Plan:
        """The plan of the whole file."""
        self.known(top, _TOP)
        prompt = self.prompt(self.take(top, "prompt", dict), "prompt") if "prompt" in top else None
        bounds = self.bounds(self.take(top, "bounds", dict) or {}, "bounds.")
        goldens: list[Wanted] = []
        expects: list[Expect] = []
        leave_alone: list[LeaveAlone] = []
        for path, line in self.tables(top, "golden", most=MAX_LINES):
            self.known(line, ("input", "id", "completion", "seed"), path)
            name = self.name(line, path, f"golden-{len(goldens) + 1}")
            completion = self.text(line, "completion", path)
            seed = self.whole(line, "seed", path, MAX_SEED, least=0)
            goldens.append(Wanted(id=name, asked=self.asked(line, "input", path), completion=completion, seed=seed))
        for key in ("expect", "never"):
            for number, (path, line) in enumerate(self.tables(top, key, most=MAX_LINES), 1):
                self.known(line, ("input", "id", *(KEYS if key == "expect" else ("not_contains",))), path)
                demand = self.demand(line, path)
                if not demand.to_json():
                    self.say(path.rstrip("."), "demands nothing; add a condition such as `not_contains`")
                name, asked = self.name(line, path, f"{key}-{number}"), self.asked(line, "input", path)
                expects.append(Expect(id=name, asked=asked, demand=demand, binds_merges=key == "never"))
        for path, line in self.tables(top, "leave_alone", most=MAX_LINES):
            self.known(line, ("input", "id", "rise", "same"), path)
            rise, same = self.least_zero(line, "rise", path), self.take(line, "same", bool, path)
            leave_alone.append(
                LeaveAlone(
                    id=self.name(line, path, f"leave-alone-{len(leave_alone) + 1}"),
                    asked=self.asked(line, "input", path),
                    answer="",
                    tokens=(),
                    loss=0.0,
                    rise=DEFAULT_RISE if rise is None else rise,
                    same=same is not False,
                )
            )
        if not (goldens or expects or leave_alone):
            self.say("(top)", "holds no test; add `[[golden]]` tables")
        return Plan(
            goldens=tuple(goldens),
            expects=tuple(expects),
            leave_alone=tuple(leave_alone),
            bounds=bounds,
            prompt=prompt,
            image=self.wanted_images(self.take(top, "image", dict)),
        )

    def wanted_images(self, value: dict[str, Any] | None) -> WantedImages | None:
        """The table `image`."""
        if value is None:
            return None
        self.known(value, ("width", "height", "steps", "guidance"), "image.")
        return WantedImages(
            width=self.side(value, "width", "image."),
            height=self.side(value, "height", "image."),
            steps=self.whole(value, "steps", "image.", MAX_STEPS),
            guidance=self.guidance(value, "image."),
        )

    def name(self, line: dict[str, Any], path: str, default: str) -> str:
        """The id of a line: its own, else the default."""
        name = self.text(line, "id", path) or default
        self.check_id(name, path)
        return name
