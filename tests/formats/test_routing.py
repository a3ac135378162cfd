"""Routing by example prompts: how often it is right, whether its check knows that, and which files it takes."""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.api.steps.routing import check_route
from adapterhub.core.digests import digest_of
from adapterhub.core.errors import CouldNotTell, Malformed, NotFound
from adapterhub.formats.meaning.encoder import Encoder
from adapterhub.formats.meaning.ranking import packed
from adapterhub.formats.meaning.routing import Chooser, Router, cross_check
from adapterhub.formats.route import LEAST_ACCURACY, Route, RoutedAdapter, read_route
from tests.support.real_encoder import minilm_base
from tests.support.route_tasks import BUILT, NONE, auc, prompts_by_task, tasks

BASE = digest_of(b"base")


def route_over(groups: list[Any], threshold: float = 0.25) -> Route:
    adapters = tuple(
        RoutedAdapter(name=f"a{at}", version="1.0.0", digest=digest_of(b"%d" % at), vectors=packed(group))
        for at, group in enumerate(groups)
    )
    return Route(base=BASE, base_name="base-7b", threshold=threshold, adapters=adapters)


def clusters(count: int, size: int = 8, spread: float = 0.5) -> list[Any]:
    random = np.random.default_rng(count)
    groups = random.normal(size=(count, 1, 384)) + spread * random.normal(size=(count, size, 384))
    return list(groups / np.linalg.norm(groups, axis=2, keepdims=True))


class Told:
    """Gives vectors that are known; a text is the place of its own."""

    def __init__(self, known: Any) -> None:
        self.known = known

    def vectors(self, texts: list[str]) -> Any:
        return np.stack([self.known[int(text)] for text in texts])


@pytest.mark.slow
def test_sixteen_tasks_are_told_apart_and_the_check_knows_how_well() -> None:
    """Real vectors; `python -m tests.bench.find_route` has every prompt."""
    encoder = Encoder(minilm_base())
    built = [encoder.vectors(prompts_by_task()[name][:BUILT]) for name in tasks()]
    held_out = [encoder.vectors(prompts_by_task()[name][BUILT : BUILT + 3]) for name in tasks()]
    strange = encoder.vectors(prompts_by_task()[NONE][:16])
    own = np.repeat(np.arange(len(built)), 3)

    chosen, cosines = Router(built).choose(np.concatenate(held_out))
    _, away = Router(built).choose(strange)
    check = cross_check(built)

    right = float((chosen == own).mean())
    assert right >= 0.9
    assert abs(check.accuracy(0) - right) <= 0.05
    kept = float(((chosen == own) & (cosines[np.arange(len(own)), chosen] >= check.proposed(LEAST_ACCURACY))).mean())
    assert abs(check.accuracy(check.proposed(LEAST_ACCURACY)) - kept) <= 0.05
    assert auc(cosines[np.arange(len(own)), own], away.max(1)) >= 0.9
    assert check.served(0).sum(1).tolist() == [BUILT] * len(built)


@pytest.mark.parametrize("count", [2, 8, 9, 30])
def test_means_and_discriminants_route_what_lies_apart(count: int) -> None:
    groups = clusters(count)
    check = cross_check(groups)

    assert check.accuracy(0) == 1
    assert check.served(check.proposed(LEAST_ACCURACY))[:, -1].sum() <= 0.05 * count * 8 + 1
    assert 0.2 <= check.proposed(LEAST_ACCURACY) < 1


def test_adapters_that_take_the_same_texts_are_confused() -> None:
    same = clusters(1, 16)[0]
    check = cross_check([same[:8], same[8:], *clusters(3)])

    assert check.served(0)[:2, :2].sum() == 16
    assert check.accuracy(0) < 0.9


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_the_accuracy_is_what_the_file_serves_at_its_threshold(threshold: float) -> None:
    route = route_over(clusters(4, 12, 1.5), threshold)
    result = check_route(route)
    vectors = np.stack([np.frombuffer(one.vectors, np.int8).reshape(-1, 384) for one in route.adapters])
    found: Counter[tuple[str, str]] = Counter()
    for out in range(12):
        left = [np.delete(group, out, 0).tobytes() for group in vectors]
        others = tuple(replace(one, vectors=raw) for one, raw in zip(route.adapters, left, strict=True))
        known = vectors[:, out] / np.linalg.norm(vectors[:, out].astype(np.float32), axis=1, keepdims=True)
        chooser = Chooser(replace(route, adapters=others), Told(known))  # type: ignore[arg-type]
        for at, one in enumerate(route.adapters):
            chosen = chooser.choose(f"{at}").adapter
            found[one.name, chosen.name if chosen else "base"] += 1

    assert result.accuracy == round(sum(count for (own, to), count in found.items() if own == to) / found.total(), 4)
    assert [one.to_base for one in result.adapters] == [found[one.name, "base"] for one in result.adapters]
    assert {(one.name, one.taken_for): one.prompts for one in result.confused} == {
        pair: count for pair, count in found.items() if pair[1] not in (pair[0], "base")
    }


def test_a_threshold_that_leaves_too_much_to_the_base_is_refused() -> None:
    route = route_over(clusters(3, 20), 0.99)
    check = check_route(route)

    assert check.accuracy < 0.9
    with pytest.raises(CouldNotTell, match=r"(?s)with the threshold 0\.99, .*20 prompts of `a0` go to the base"):
        check.ensure_good("Nothing was written")
    check_route(replace(route, accepted=True)).ensure_good("Nothing was written")
    check_route(replace(route, threshold=0.2)).ensure_good("Nothing was written")


def test_a_file_chooses_as_the_vectors_did_and_leaves_out_what_may_not_be_used(tmp_path: Path) -> None:
    groups = clusters(3, 9)
    (tmp_path / "route.json").write_bytes(route_over([group[:8] for group in groups]).to_bytes())
    read = read_route(tmp_path / "route.json")

    chooser = Chooser(read, Told([group[8] for group in groups]))  # type: ignore[arg-type]
    assert [chooser.choose(f"{at}").adapter for at in range(3)] == list(read.adapters)
    others = chooser.choose("1", lambda one: one.name != "a1")
    assert (others.adapter, others.cosine < 0.25, sorted(name for name, _ in others.near)) == (None, True, ["a0", "a2"])
    assert chooser.choose("1", lambda _: False).adapter is None


def changed(value: dict[str, Any], **new: Any) -> dict[str, Any]:
    return value | {"adapters": [value["adapters"][0] | new, *value["adapters"][1:]]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v | {"schema": "x"}, "schema: expected `adapterhub/route/1`"),
        (lambda v: v | {"model": "other"}, "model: made with other"),
        (lambda v: v | {"threshold": 2}, "threshold: expected a number from 0 to 1"),
        (lambda v: v | {"threshold": True}, "threshold: expected a number from 0 to 1"),
        (lambda v: v | {"adapters": v["adapters"][:1]}, "adapters: expected a list of 2 to 256"),
        (lambda v: v | {"adapters": [v["adapters"][0]] * 2}, "one name is there twice"),
        (lambda v: v | {"base": 3}, "base.weights: expected a digest"),
        (lambda v: changed(v, name="../x"), "adapters[0]: `../x`"),
        (lambda v: changed(v, version="one"), "adapters[0]: `one`"),
        (lambda v: changed(v, digest="sha256:1"), "adapters[0].digest: expected a digest"),
        (lambda v: changed(v, vectors="%%"), "adapters[0].vectors: expected 8 to 64 times 384 bytes"),
        (lambda v: changed(v, vectors=base64.b64encode(bytes(8 * 384)).decode()), "adapters[0].vectors: one is zero"),
        (lambda v: changed(v, vectors=base64.b64encode(b"a" * 7 * 384).decode()), "expected 8 to 64 times"),
    ],
)
def test_a_routing_file_that_breaks_its_format_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "route.json"
    path.write_text(json.dumps(change(json.loads(route_over(clusters(2)).to_bytes()))))

    with pytest.raises(Malformed) as refused:
        read_route(path)
    assert said in refused.value.message


def test_numbers_that_are_none_and_files_that_are_too_large_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "route.json"
    path.write_bytes(replace(route_over(clusters(2)), threshold=float("nan")).to_bytes())
    with pytest.raises(Malformed, match="NaN"):
        read_route(path)
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(Malformed):
        read_route(path)
    with pytest.raises(NotFound):
        read_route(tmp_path / "nothing.json")
