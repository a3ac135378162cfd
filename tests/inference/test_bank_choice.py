"""Choosing adapters of a bank: for a context, a sum, or each row; between threads and tasks; and on PEFT's layers."""

from __future__ import annotations

import asyncio
import contextvars
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapterhub.core.errors import AdapterNotFound, MergeRefused, UnsupportedAdapter, UsageProblem
from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.loader import base_digest
from adapterhub.library.library import Library
from adapterhub.weights.merge import MergeInput, merge
from tests.support.adapter_folders import updates_in
from tests.support.bank_adapters import hooks_of, lora, make_folders, with_peft, with_sum
from tests.support.tiny_models import llama, logits, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

CLOSE = {"rtol": 1e-5, "atol": 2e-5}
"""Sums of the same numbers, put together in another order, in float32."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_folders(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def bank(folders: dict[str, Path], library: Library) -> Iterator[AdapterBank]:
    with AdapterBank(llama(), library=library) as made:
        for folder in folders.values():
            made.load(folder)
        yield made


def said(bank: AdapterBank) -> Tensor:
    return logits(bank.model)


def same(expected: Tensor, actual: Tensor) -> bool:
    torch.testing.assert_close(actual, expected, **CLOSE)
    return True


# ---------------------------------------------------------------- for a context
def test_a_choice_holds_from_the_call_on(bank: AdapterBank, folders: dict[str, Path]) -> None:
    bank.use("a")
    first = said(bank)
    bank.use("b")
    second = said(bank)
    bank.use(None)

    assert same(with_peft(folders["a"]), first)
    assert same(with_peft(folders["b"]), second)
    assert torch.equal(with_peft(None), said(bank))


def test_the_end_of_a_block_brings_back_what_held_before(bank: AdapterBank, folders: dict[str, Path]) -> None:
    with bank.use("a"):
        outer = said(bank)
        with bank.use("b"), bank.use(None):
            assert torch.equal(with_peft(None), said(bank))
        with pytest.raises(ZeroDivisionError), bank.rows(["c", "b"]):
            _ = 1 / 0
        assert torch.equal(outer, said(bank))

    assert same(with_peft(folders["a"]), outer)
    assert torch.equal(with_peft(None), said(bank))


def test_unloading_takes_nothing_from_a_choice_that_holds_it(bank: AdapterBank, folders: dict[str, Path]) -> None:
    with bank.use("a"), bank.rows(["a", "b"]):
        bank.unload("a")
        bank.unload("b")
        mixed = said(bank)

    assert same(with_peft(folders["a"])[0], mixed[0])
    assert same(with_peft(folders["b"])[1], mixed[1])
    with pytest.raises(AdapterNotFound):
        bank.use("a")


@pytest.mark.parametrize("choice", ["nothing-by-this-name", {"a": 1.0, "nothing": 1.0}, "./nowhere"])
def test_a_name_that_is_not_known_is_not_found(choice: Any, bank: AdapterBank) -> None:
    with bank.use("a"):
        before = said(bank)
        with pytest.raises(AdapterNotFound):
            bank.use(choice)
        assert torch.equal(before, said(bank))  # the choice that held still holds


# ---------------------------------------------------------------- sums
@pytest.mark.parametrize("weights", [(0.7, 0.3, 1.0), (1.0, -1.0, 0.5), (0.0, 2.0, -0.25)])
def test_a_mapping_is_the_dense_float64_sum(
    weights: tuple[float, ...], folders: dict[str, Path], library: Library
) -> None:
    dense = llama().double()
    for name, weight in zip("abc", weights, strict=True):
        for module, update in updates_in(folders[name]).items():
            with torch.no_grad():
                target = dense.get_submodule(module)
                target.weight += weight * (update.T if "embed" in module else update)

    with AdapterBank(llama().double(), library=library) as bank:
        choice = {bank.load(folders[n]): w for n, w in zip("abc", weights, strict=True)}
        with bank.use(choice):
            summed = said(bank)
        with bank.rows([choice, None]):
            by_row = said(bank)

    # both in float64; only the order of the sums differs
    torch.testing.assert_close(summed, logits(dense), rtol=0, atol=1e-12)
    torch.testing.assert_close(by_row[0], summed[0], rtol=0, atol=1e-12)


def test_a_mapping_is_what_the_merge_by_cat_is(bank: AdapterBank, folders: dict[str, Path], tmp_path: Path) -> None:
    parts = {"a": 0.7, "b": -1.3}
    inputs = [MergeInput(folder=folders[n], label=n, weight=w) for n, w in parts.items()]
    merge(inputs, tmp_path / "merged", method="cat")
    bank.load(tmp_path / "merged")

    with bank.use(parts):
        summed = said(bank)
    with bank.use("merged"):
        merged = said(bank)

    assert same(merged, summed)


@pytest.mark.parametrize(
    ("choice", "error", "said"),
    [({"a": float("nan")}, UsageProblem, "weight"), ({"a": True}, UsageProblem, "weight"), ({}, UsageProblem, "choice"),
     (3, UsageProblem, "choice"), ({"dora": 0.5}, MergeRefused, "DoRA"), ({"ia3": 1, "a": 1}, MergeRefused, "PEFT"),
     ({"ia3": 0.5}, MergeRefused, "weight 1")],
)  # fmt: skip
def test_a_choice_without_meaning_is_refused(choice: Any, error: type[Exception], said: str, bank: AdapterBank) -> None:
    with pytest.raises(error, match=said):
        bank.use(choice)


def test_a_module_that_one_replaces_and_another_adapts_is_refused(bank: AdapterBank, tmp_path: Path) -> None:
    other = make_folders(tmp_path, "norm")["norm"]
    bank.load(other, name="norm again")

    with pytest.raises(MergeRefused, match="replaced whole"):
        bank.rows([{"norm": 0.5, "norm again": 0.5}, None])


# ---------------------------------------------------------------- rows
def test_rows_are_independent_of_each_other(bank: AdapterBank, folders: dict[str, Path], library: Library) -> None:
    half = {"a": 0.5, "c": 0.5}
    expected = {"a": with_peft(folders["a"]), "dora": with_peft(folders["dora"]), None: with_peft(None)}
    expected["half"] = with_sum({folders["a"]: 0.5, folders["c"]: 0.5}, library)
    for choices in (["a", "half"], [None, "dora"], ["half", None], ["dora", "dora"], [None, None]):
        with bank.rows([half if c == "half" else c for c in choices]):
            mixed = said(bank)
        for row, choice in enumerate(choices):
            assert same(expected[choice][row], mixed[row])


@pytest.mark.parametrize("beams", [1, 2])
def test_padded_rows_write_what_they_write_alone(beams: int, bank: AdapterBank) -> None:
    ids = torch.tensor([[0, 0, 0, 5, 6, 7], [9, 8, 7, 6, 5, 4], [0, 0, 11, 12, 13, 14], [0, 3, 1, 4, 1, 5]])
    options = {
        "attention_mask": (ids > 0).long(), "max_new_tokens": 5, "do_sample": False, "num_beams": beams,
        "pad_token_id": 0,
    }  # fmt: skip
    choices = ["b", None, "a", {"a": 0.5, "b": 1.5}]
    alone = []
    for row, choice in enumerate(choices):
        with bank.use(choice):
            alone.append(bank.model.generate(ids, **options)[row])

    with bank.rows(choices):
        mixed = bank.model.generate(ids, **options)

    assert torch.equal(torch.stack(alone), mixed)
    assert len({tuple(row[6:].tolist()) for row in mixed}) == len(choices)


def test_long_and_short_rows_take_different_ways_to_the_same_answer(bank: AdapterBank) -> None:
    ids = torch.arange(2 * 40).reshape(2, 40) % 64
    with torch.no_grad(), bank.rows(["a", "c"]):
        long = bank.model(ids).logits  # by groups: many tokens in a row
        short = bank.model(ids[:, :6]).logits  # stacked: few

    assert same(short, long[:, :6])


@pytest.mark.parametrize(
    "choices",
    [["a", "a", "b", "b"], ["a", "b", "a", "b", "a", "b"], ["b", None, "b", None, "a"], ["a", None, None, "a"],
     ["a", "a", "a", "a", "a", "b", "half"], ["biased", "a", "biased"]],
    ids=["side by side", "in turns", "some plain", "one and plain", "parts of other sizes", "with a bias"],
)  # fmt: skip
def test_rows_that_share_an_adapter_answer_as_alone(
    choices: list[str | None], bank: AdapterBank, tmp_path: Path
) -> None:
    if "biased" in choices:
        bank.load(save_adapter(tmp_path / "biased", llama, lora(lora_bias=True), seed=9))
    half = {"a": 0.5, "c": 0.5}
    ids = torch.arange(7 * 5).reshape(7, 5)[: len(choices)] % 64
    meant = [half if choice == "half" else choice for choice in choices]
    alone = []
    for row, choice in enumerate(meant):
        with bank.use(choice), torch.no_grad():
            alone.append(bank.model(ids).logits[row])

    with bank.rows(meant), torch.no_grad():
        stacked = bank.model(ids).logits
        again = bank.model(ids[:, :1]).logits

    assert same(torch.stack(alone), stacked)
    assert same(stacked[:, :1], again)


def test_a_batch_of_other_length_is_refused(bank: AdapterBank) -> None:
    with bank.rows(["a", "b", None]), pytest.raises(UsageProblem, match="expected 3 rows"):
        said(bank)


@pytest.mark.parametrize("choices", ["ab", {"a": 1.0}, [], None, 2])
def test_what_is_no_list_of_choices_is_refused(choices: Any, bank: AdapterBank) -> None:
    with pytest.raises(UsageProblem):
        bank.rows(choices)


# ---------------------------------------------------------------- threads and tasks
def test_two_threads_in_one_forward_pass_get_their_own_answers(bank: AdapterBank) -> None:
    expected = {}
    for name in ("a", "b"):
        with bank.use(name):
            expected[name] = said(bank)
    meeting, wrong = threading.Barrier(2, timeout=60), list[str]()

    def meet(*_: object) -> None:
        meeting.wait()

    middle = bank.model.model.layers[0].register_forward_hook(meet)

    def work(name: str) -> None:
        with bank.use(name):
            wrong.extend(name for _ in range(5) if not torch.equal(expected[name], said(bank)))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    middle.remove()

    assert (wrong, meeting.broken) == ([], False)
    assert torch.equal(with_peft(None), said(bank))


def test_tasks_of_one_event_loop_do_not_see_each_others_choice(bank: AdapterBank, folders: dict[str, Path]) -> None:
    async def ask(name: str | None) -> Tensor:
        with bank.use(name):
            await asyncio.sleep(0)
            in_thread = await asyncio.to_thread(said, bank)
            await asyncio.sleep(0)
            assert torch.equal(in_thread, said(bank))
            return in_thread

    async def all_at_once() -> list[Tensor]:
        return await asyncio.gather(ask("a"), ask(None), ask("b"))

    first, none, second = asyncio.run(all_at_once())

    assert same(with_peft(folders["a"]), first)
    assert torch.equal(with_peft(None), none)
    assert same(with_peft(folders["b"]), second)


def in_thread(work: Callable[[], Any]) -> Any:
    got: list[Any] = []

    def run() -> None:
        try:
            got.append(work())
        except Exception as error:  # noqa: BLE001 - handed to the test
            got.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return got[0]


def test_a_new_thread_begins_without_a_choice_and_can_take_one_along(bank: AdapterBank) -> None:
    with bank.use("a"):
        here = said(bank)
        context = contextvars.copy_context()

        assert torch.equal(with_peft(None), in_thread(lambda: said(bank)))
        assert torch.equal(here, in_thread(lambda: context.run(said, bank)))


# ---------------------------------------------------------------- on PEFT's layers
def test_an_adapter_on_pefts_layers_holds_in_its_block_and_not_outside(
    bank: AdapterBank, folders: dict[str, Path]
) -> None:
    before, hooks = base_digest(bank.model), hooks_of(bank.model)
    with bank.use("ia3"):
        inside = said(bank)
    waiting = bank.use("ia3")
    with pytest.raises(UsageProblem, match="not on the model outside its block"):
        said(bank)  # never the plain base in silence
    waiting.__exit__(None, None, None)

    assert same(with_peft(folders["ia3"]), inside)
    assert torch.equal(with_peft(None), said(bank))
    assert (before, hooks) == (base_digest(bank.model), hooks_of(bank.model))


def test_others_wait_until_the_block_ends(bank: AdapterBank, folders: dict[str, Path]) -> None:
    def other() -> Tensor:
        with bank.use("b"):
            began.set()
            return said(bank)

    began, got = threading.Event(), []
    thread = threading.Thread(target=lambda: got.append(other()))
    with bank.use("ia3"):
        thread.start()
        began.wait(60)
        bank.load(folders["a"], name="loaded meanwhile")
        inside = [said(bank) for _ in range(3)]
        assert got == []
    thread.join(60)

    assert all(same(with_peft(folders["ia3"]), each) for each in inside)
    assert same(with_peft(folders["b"]), got[0])
    with bank.use("loaded meanwhile"):
        assert same(with_peft(folders["a"]), said(bank))


def test_another_choice_in_the_block_or_in_a_task_of_its_thread_is_refused(bank: AdapterBank) -> None:
    empty = contextvars.Context()  # as a task that began before
    with bank.use("ia3"):
        for wrong in (lambda: bank.use("a"), lambda: bank.rows(["a", None]), lambda: bank.use(None)):
            with pytest.raises(UsageProblem, match="in use here"):
                wrong()
        with pytest.raises(UsageProblem, match="another task of this thread"):
            empty.run(said, bank)
        with pytest.raises(UsageProblem, match="another task of this thread"):
            empty.run(lambda: bank.use("ia3").__enter__())

    with bank.use("ia3"):
        pass
    assert torch.equal(with_peft(None), said(bank))


def test_a_block_that_cannot_begin_leaves_the_model_to_others(
    bank: AdapterBank, folders: dict[str, Path], tmp_path: Path
) -> None:
    gone = make_folders(tmp_path, "ia3")["ia3"]
    using = bank.use(bank.load(gone, name="gone"))
    shutil.rmtree(gone)

    with pytest.raises(AdapterNotFound), using:
        pass

    assert torch.equal(with_peft(None), said(bank))
    assert torch.equal(with_peft(None), in_thread(lambda: said(bank)))


def test_closing_inside_the_block_leaves_the_bare_model(folders: dict[str, Path], library: Library) -> None:
    model = llama()
    before = hooks_of(model)
    bank = AdapterBank(model, library=library)
    with bank.use(bank.load(folders["ia3"])):
        bank.close()
        assert torch.equal(with_peft(None), logits(model))

    assert before == hooks_of(model)
    assert torch.equal(with_peft(None), logits(model))


def test_rows_on_pefts_layers_are_refused(bank: AdapterBank) -> None:
    with pytest.raises(UnsupportedAdapter, match="PEFT's layers"):
        bank.rows(["ia3", None])
