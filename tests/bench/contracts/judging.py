"""Records the contract of a trained adapter, changes something, and takes the verdict and the truth.

Verdicts come from the functions behind `adapt test`. The truth of a writer is the share of 64 held-out prompts whose
greedy answer is, token for token, the sound adapter's. That of a classifier is the share of 64 held-out texts that keep
their label with its probability within 0.1.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import digest_of
from adapterhub.formats.contract.contract import Contract, Demand, Expect, Recorded, ids_digest
from adapterhub.formats.contract.reader import Plan, Wanted, parse_contract
from adapterhub.formats.manifest import WEIGHTS_FILE
from adapterhub.formats.prompts.form import PromptForm, prompt_tokens
from tests.bench.contracts.changes import Change
from tests.bench.contracts.families import Family
from tests.bench.contracts.tasks import Task
from tests.bench.contracts.training import Recipe, load, recipes, trained

NEW_TOKENS: Final = 28
NEAR: Final = 0.1
"""How far the probability of a label may move until a held-out text counts as changed."""
NEVERS, SHARES = 6, (0.6, 0.5, 0.4, 0.3, 0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A trained adapter with its contract; `held` pairs held-out inputs with the answer's tokens or the label's scores."""

    recipe: Recipe
    folder: Path
    contract: Contract
    held: Sequence[tuple[str, Sequence[float]]]


class Bench:
    """One family with its base in memory."""

    def __init__(self, name: str, family: Family, work: Path, *, alike: bool = False) -> None:
        self.name, self.family, self.work = name, family, work
        self.base = family.make(work)
        self.model, self.tokenizer = load(family, self.base)
        self.recipes = recipes(name, family, alike=alike)
        self.original = {key: tensor.clone() for key, tensor in self.model.state_dict().items()}

    # ---------------------------------------------------------------- adapters
    def adapter(self, at: int) -> tuple[Path, float]:
        """The folder of the adapter with this number, trained if need be, and the CPU seconds it took."""
        return trained(self.recipes[at % len(self.recipes)], self.family, self.base, self.work)

    def form(self, task: Task) -> PromptForm:
        """How a task is asked."""
        if self.family.kind == "classify":
            return PromptForm(form="text")
        if task.chat:
            return PromptForm(form="chat", max_new_tokens=NEW_TOKENS)
        return PromptForm(form="template", template=task.template, max_new_tokens=NEW_TOKENS)

    @contextmanager
    def on(self, folder: Path, model: Any = None) -> Iterator[Any]:
        """The base, or another model of its shape, with an adapter on it."""
        from adapterhub import attach

        with attach(model or self.model, folder, library=self.work / "library") as attached:
            yield attached.model

    def contract(self, at: int) -> Contract:
        """The contract of the adapter, recorded if need be.

        Raises:
            AdapterHubError: no contract can be recorded.
        """
        place = self._place(at) / "contract.jsonl"
        if place.exists():
            found = parse_contract(place.read_bytes())
            if found.rounding is not None or self.family.kind == "classify":  # an older one is recorded again
                return found
        from adapterhub.inference.contracts.recording import record

        recipe, (folder, _) = self.recipes[at], self.adapter(at)
        task = self.family.tasks[recipe.name]
        goldens = [Wanted(id=f"golden-{n}", asked=one, completion=answer)
                   for n, (one, answer) in enumerate(task.rows(recipe.seed)[1], 1)]  # fmt: skip
        where, plan = _where(folder, self.model), Plan(goldens=tuple(goldens))
        with self.on(folder) as model:
            made = record(model, self.tokenizer, plan, self.form(task), where, kind=self.family.kind)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(made.contract.to_bytes())
        return made.contract

    def subject(self, at: int) -> Subject:
        """The adapter with its contract and the answers of the truth, recorded if need be.

        Raises:
            AdapterHubError: no contract can be recorded.
        """
        recipe, (folder, _) = self.recipes[at], self.adapter(at)
        contract, place = self.contract(at), self._place(at) / "held.json"
        if not place.exists():
            place.write_text(json.dumps(self._held(recipe, folder)))
        return Subject(recipe=recipe, folder=folder, contract=contract, held=json.loads(place.read_text()))

    def _place(self, at: int) -> Path:
        recipe = self.recipes[at]
        return self.work / "recorded" / recipe.family / f"{recipe.name}-{recipe.key}"

    def _held(self, recipe: Recipe, folder: Path) -> list[tuple[str, list[float]]]:
        from adapterhub.inference.contracts.answers import encode, greedy

        task = self.family.tasks[recipe.name]
        form, inputs = self.form(task), [one for one, _ in task.rows(recipe.seed)[2]]
        with self.on(folder) as model:
            rows = prompt_tokens(form, inputs, self.tokenizer)
            if self.family.kind == "classify":
                answers = [list(one.logits) for one in encode(model, rows, _silent, vectors=False)]
            else:
                answers = [list(map(float, one)) for one in greedy(model, self.tokenizer, rows, form, _silent)]
        return list(zip(inputs, answers, strict=True))

    # ---------------------------------------------------------------- one pair
    def judged(self, subject: Subject, change: Change) -> dict[str, Any] | None:
        """The verdict and the truth after a change; None where it does not apply."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.changed(subject, change, Path(temporary) / "changed")
            form = change.form(subject.contract.prompt) if change.form else subject.contract.prompt
            if folder is None or form is None or (form.form == "chat" and not self.tokenizer.chat_template):
                return None
            tokenizer = change.tokenizer(self.tokenizer) if change.tokenizer else self.tokenizer
            with self.base_after(change) as base, self.on(folder, base) as model:
                return self._measured(subject, model, tokenizer, form)

    def _measured(self, subject: Subject, model: Any, tokenizer: Any, form: PromptForm) -> dict[str, Any]:
        from adapterhub.inference.contracts.checking import check

        contract = replace(subject.contract, prompt=form)
        checked = check(model, tokenizer, contract)
        found: dict[str, Any] = {"verdict": checked.verdict, "reason": checked.reason}
        found["cpu_seconds"] = round(checked.cpu_seconds, 3)
        if checked.reason in ("other-tokenizer", "other-template"):
            checked = check(model, tokenizer, self._as_if_recorded(contract, tokenizer))  # what the numbers alone say
        found |= {"by_numbers": checked.verdict, "same": checked.same, "retention": checked.retention}
        found |= {"drift": checked.drift, "outcome": checked.outcome}
        found |= {"kl": checked.kl, "goldens": _cases(subject.contract, checked.cases)}
        begun = time.process_time()
        found |= self._truth(subject, model, tokenizer, form)
        found["truth_seconds"] = round(time.process_time() - begun, 3)
        found["bytes"] = len(subject.contract.to_bytes())
        return {
            key: value if not isinstance(value, float) or math.isfinite(value) else None for key, value in found.items()
        }

    def _as_if_recorded(self, contract: Contract, tokenizer: Any) -> Contract:
        """The contract with the digests of other prompts: as if no one had noticed that the prompts differ."""
        rows = prompt_tokens(contract.prompt, [golden.asked or "" for golden in contract.goldens], tokenizer)
        goldens = [replace(golden, prompt_tokens=len(row), prompt_sha256=ids_digest(row))
                   for golden, row in zip(contract.goldens, rows, strict=True)]  # fmt: skip
        return replace(contract, prompt=replace(contract.prompt, chat_template_sha256=None), goldens=tuple(goldens))

    def _truth(self, subject: Subject, model: Any, tokenizer: Any, form: PromptForm) -> dict[str, float]:
        from adapterhub.inference.contracts.answers import AnswerRow, encode, scores

        rows = prompt_tokens(form, [asked for asked, _ in subject.held], tokenizer)
        answers = [answer for _, answer in subject.held]
        if self.family.kind == "classify":
            now = [one.logits for one in encode(model, rows, _silent, vectors=False)]
            kept = [_best(one) == _best(other) for one, other in zip(answers, now, strict=True)]
            near = [same and abs(math.exp(max(one)) - math.exp(max(other))) <= NEAR
                    for same, one, other in zip(kept, answers, now, strict=True)]  # fmt: skip
            return {"truth": sum(near) / len(near), "labels": sum(kept) / len(kept)}
        pairs = [
            AnswerRow(prompt=row, answer=[int(t) for t in answer]) for row, answer in zip(rows, answers, strict=True)
        ]
        found = scores(model, pairs, _silent)
        return {"truth": sum(one.same for one in found) / len(found)}

    def changed(self, subject: Subject, change: Change, folder: Path) -> Path | None:
        """The adapter after a change, written into `folder` if need be; None where the change does not apply."""
        at = self.recipes.index(subject.recipe)
        if change.replaces:
            return self.adapter(at + 1)[0]
        if change.weights:
            if self.family.kind == "classify":  # a merge has no head of its own
                return None
            return _merge(
                [self.adapter(at + n)[0] for n in range(len(change.weights))], change.weights, folder, change.method
            )
        if change.tensors is None:
            return subject.folder
        from safetensors.torch import load_file, save_file

        tensors = change.tensors(load_file(subject.folder / WEIGHTS_FILE))
        if tensors is None:
            return None
        shutil.copytree(subject.folder, folder)
        save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS_FILE, {"format": "pt"}
        )
        return folder

    @contextmanager
    def base_after(self, change: Change) -> Iterator[Any]:
        """The base after a change; afterwards it is what it was."""
        import torch

        if change.reloads:
            folder = self.work / "bases" / f"{self.name}-renamed"
            if not (folder / "config.json").exists():
                self.model.save_pretrained(folder, max_shard_size="20MB")
                self.tokenizer.save_pretrained(folder)
            yield load(self.family, folder)[0]
            return
        if change.base is not None:
            with torch.no_grad():
                change.base(self.model)
        try:
            yield self.model
        finally:
            if change.base is not None:
                self.model.to(torch.float32).load_state_dict(self.original)

    # ---------------------------------------------------------------- merges that break a rule
    def broken_never(self, at: int) -> dict[str, Any] | None:
        """Two parents hide a share of a third adapter, and keep a rule that their sum breaks. None for classifiers."""
        from adapterhub.inference.contracts.checking import check

        count = len(self.recipes)
        marked = [n for n in range(at + 2, at + count) if self.family.tasks[self.recipes[n % count].name].marker]
        if self.family.kind == "classify" or not marked:
            return None
        hidden = self.recipes[marked[0] % count]
        task = self.family.tasks[hidden.name]
        _, asked, held = task.rows(hidden.seed)
        rule = self._rule(task, [one for one, _ in asked[:NEVERS]], self.adapter(marked[0])[0])
        truth = replace(rule, expects=_nevers(task, [one for one, _ in held]))
        own, other, third = (self.adapter(n)[0] for n in (at, at + 1, marked[0]))
        for share in SHARES:
            with tempfile.TemporaryDirectory() as temporary:
                work = Path(temporary)
                parents = [_merge([one, third], (1, share), work / name, "cat")
                           for name, one in (("one", own), ("other", other))]  # fmt: skip
                if any(parent is None or self._verdict(parent, rule) != "PASS" for parent in parents):
                    continue
                merged = _merge([parent for parent in parents if parent], (1, 1), work / "merged", "cat")
                if merged is None:
                    continue
                with self.on(merged) as model:
                    told = check(model, self.tokenizer, rule)
                    wrong = check(model, self.tokenizer, truth, budget_s=None).cases
            broken = sum(case.verdict == "CHANGED" for case in wrong) / len(wrong)
            if broken:
                return {"hidden": hidden.name, "share": share, "verdict": told.verdict, "truth": 1 - broken,
                        "cpu_seconds": round(told.cpu_seconds, 3)}  # fmt: skip
        return {"hidden": hidden.name, "verdict": "", "truth": 1.0}

    def _verdict(self, folder: Path, contract: Contract) -> str:
        from adapterhub.inference.contracts.checking import check

        with self.on(folder) as model:
            return check(model, self.tokenizer, contract).verdict

    def _rule(self, task: Task, asked: Sequence[str], folder: Path) -> Contract:
        where = _where(folder, self.model)
        return Contract(kind=self.family.kind, prompt=self.form(task), recorded=where, expects=_nevers(task, asked))


def _nevers(task: Task, asked: Sequence[str]) -> tuple[Expect, ...]:
    demand = Demand(not_contains=(task.marker,))
    return tuple(Expect(id=f"never-{n}", asked=one, demand=demand, binds_merges=True) for n, one in enumerate(asked, 1))


def _merge(folders: Sequence[Path], weights: Sequence[float], out: Path, method: str) -> Path | None:
    from adapterhub.core.errors import MergeRefused
    from adapterhub.weights.merge import MergeInput, merge

    inputs = [
        MergeInput(folder=one, label=one.name, weight=weight) for one, weight in zip(folders, weights, strict=True)
    ]
    try:
        merge(inputs, out, method=method)
    except MergeRefused:
        return None
    return out


def _where(folder: Path, model: Any) -> Recorded:
    adapter = digest_of((folder / WEIGHTS_FILE).read_bytes())
    none, size = digest_of(b""), model.get_input_embeddings().weight.shape[0]
    return Recorded(base=none, base_dtype="float32", adapter=adapter, tokenizer_sha256=none, vocabulary=size,
                    engine="transformers", torch="torch", peft="peft")  # fmt: skip


def _cases(contract: Contract, cases: Sequence[Any]) -> list[list[Any]]:
    """For each golden: whether its answer stayed, the loss now, at the recording and of the base, and its tokens."""
    by_id: Mapping[str, Any] = {case.id: case for case in cases}
    return [
        [by_id[one.id].same, by_id[one.id].loss, one.loss, one.base_loss, len(one.tokens)]
        for one in contract.distinct
        if one.id in by_id
    ]


def _best(logits: Sequence[float]) -> int:
    return max(range(len(logits)), key=lambda at: logits[at])


def _silent(_done: int) -> None:
    """A tick that says nothing."""
