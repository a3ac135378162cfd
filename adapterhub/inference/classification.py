"""Classifies texts with an adapter that was trained for sequence classification (SEQ_CLS) and brings its head."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.core.errors import AdapterHubError, UnsupportedAdapter, UsageProblem, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.distribution.finding import Finder, FoundAdapter
from adapterhub.formats.manifest import Manifest
from adapterhub.formats.prompts.form import PromptForm, unknown_keys
from adapterhub.inference.generation import Answer, Question, Writing, all_tokens_of
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import AdapterLike
from adapterhub.trust.verify import Subject, open_subject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adapterhub.inference.generation import Model

_CLASSIFIER: Final = "SEQ_CLS"
_NEITHER: Final = ("TOKEN_CLS", "QUESTION_ANS")
_MATRIX: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """The tasks of the adapters of one model.

    `labels` is the number of labels that the classifiers distinguish, None if all write text. `forms` has the prompt
    form that each build states, by the adapter as it was given; `notes` lists forms that a newer version wrote.
    """

    labels: int | None
    forms: Mapping[AdapterLike, PromptForm | None]
    notes: tuple[str, ...] = ()


def kinds_of(
    library: Library, adapters: Iterable[AdapterLike | None], base: BaseSpec | None, *, allow_base_mismatch: bool
) -> Kinds:
    """Return how many labels the classifiers among `adapters` tell apart, and how each wants to be asked.

    `adapters` are all that one model is loaded for; None stands for the plain base. Reads only configs and headers,
    and passes over adapters that cannot be found, which fail when they are loaded.

    Raises:
        UnsupportedAdapter: one is made for another task, or a classifier's file has no head.
        UsageProblem: they need different models.
    """
    finder = Finder(library, base, lambda: None, allow_base_mismatch=allow_base_mismatch, check=_glance)
    kinds: dict[int | None, str] = {}
    forms: dict[AdapterLike, PromptForm | None] = {}
    notes = []
    for adapter in adapters:
        if adapter is None:
            kinds.setdefault(None, "none")
            continue
        try:
            found = finder.find(adapter, 1.0)
        except AdapterHubError:
            continue
        kinds.setdefault(_labels(found), found.label)
        forms[adapter] = found.manifest.prompt if found.manifest is not None else None
        newer = unknown_keys(found.manifest.behaviour["prompt"]) if found.manifest and forms[adapter] else []
        if newer:
            whose = f"the prompt form of `{shown(found.label, 200)}`"
            notes.append(f"{whose} has `{shown(newer[0])}`, which is passed over; a newer adapterhub may read it")
    if len(kinds) > 1:
        (first, one), (second, other) = list(kinds.items())[:2]
        raise UsageProblem(
            f"`{shown(one, 200)}` {_does(first)}, and `{shown(other, 200)}` {_does(second)}:"
            " no one model in memory does both",
            hint="run them one after the other",
        )
    return Kinds(labels=next(iter(kinds), None), forms=forms, notes=tuple(notes))


def _does(labels: int | None) -> str:
    if labels is None:
        return "writes text"
    return "gives one number" if labels == 1 else f"tells {labels} labels apart"


def _glance(
    folder: Path, label: str, manifest: Manifest | None, identify: object
) -> tuple[Subject | None, tuple[str, ...]]:  # as `check_folder`, which runs before the adapter reaches a model
    del label, identify
    return open_subject(folder, manifest=manifest, base_named=True)[0], ()


def _labels(found: FoundAdapter) -> int | None:
    """Return the number of labels that one adapter tells apart; None if it writes text."""
    if found.subject is None:
        return None
    task = found.subject.config.task_type
    if task in _NEITHER:
        raise UnsupportedAdapter(
            f"`{shown(found.label, 200)}` is made for {task}; `run` writes text and classifies texts",
            hint="load its model yourself: `adapterhub.attach(model, …)` takes a model of any kind",
        )
    if task != _CLASSIFIER:
        return None
    heads = [spec.shape[0] for _, spec in found.subject.keys.saved if len(spec.shape) == _MATRIX]
    if not heads:
        raise UnsupportedAdapter(
            f"`{shown(found.label, 200)}` is a classifier ({_CLASSIFIER}), and its file has no head",
            hint="save it with `modules_to_save` naming the head, or attach it to a model that has the trained one",
        )
    return min(heads)  # a head of two layers ends in the smaller one


def classify(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    on_text: Callable[[str], None] | None = None,
) -> list[Answer]:
    """Return the most probable label of each text, by softmax; a head of one output gives its plain number.

    Texts of one length share a pass, so that none is padded and each gets the answer it would get in its own pass.
    `on_text` is called with each answer's text.

    Raises:
        UsageProblem: a text has no valid tokens; see `all_tokens_of`.
    """
    import torch

    start = time.perf_counter()
    rows = all_tokens_of(model, tokenizer, questions, Writing(max_new_tokens=0))
    numbers: dict[int, list[float]] = {}
    for length in sorted({len(row) for row in rows}):
        chosen = [at for at, row in enumerate(rows) if len(row) == length]
        ids = torch.tensor([rows[at] for at in chosen], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
        scores = logits.softmax(-1) if logits.shape[-1] > 1 else logits
        numbers |= zip(chosen, scores.tolist(), strict=True)
    seconds = time.perf_counter() - start
    names = model.config.id2label
    answers = [_answer(numbers[at], names, len(row), seconds) for at, row in enumerate(rows)]
    for answer in answers if on_text else ():
        assert on_text is not None
        on_text(answer.text)
    return answers


def _answer(scores: list[float], names: dict[int, str], prompt_tokens: int, seconds: float) -> Answer:
    if len(scores) == 1:
        return Answer(text=f"{scores[0]:.4f}", tokens=0, prompt_tokens=prompt_tokens, seconds=seconds)
    by_label = {str(names[at]): score for at, score in enumerate(scores)}
    label = max(by_label, key=lambda name: by_label[name])
    return Answer(
        text=f"{label}  {by_label[label]:.4f}",
        tokens=0,
        prompt_tokens=prompt_tokens,
        seconds=seconds,
        label=label,
        probabilities=by_label,
    )
