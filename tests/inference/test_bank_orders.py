"""Any order of loads, uses, evictions and unloads; and a thousand files through sixteen places."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapterhub.core.errors import AdapterNotFound
from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.bank.residency import Residency
from adapterhub.inference.bank.updates import LoadedAdapter
from adapterhub.inference.loader import base_digest
from adapterhub.inference.loader.text import load_base
from adapterhub.library.library import Library
from tests.support.bank_adapters import hooks_of, make_folders, with_peft, with_sum
from tests.support.real_base import smollm2_base
from tests.support.tiny_models import llama, logits

pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = ("a", "b", "c", "dora", "ia3")
CLOSE = {"rtol": 1e-5, "atol": 5e-5}
SHIPPED = (
    Path(__file__).resolve().parent.parent.parent / "adapterhub" / "cli" / "start" / "demo_run" / "adapters" / "json"
)


# ---------------------------------------------------------------- any order
class Orders(RuleBasedStateMachine):
    """A bank with room for two, beside a model of what it should say: plain PEFT on a base made anew."""

    folders: dict[str, Path]
    library: Library
    sums: dict[tuple[str, str, float], Tensor]

    @initialize()
    def begin(self) -> None:
        self.model = llama()
        self.digest, self.hooks = base_digest(self.model), hooks_of(self.model)
        self.bank = AdapterBank(self.model, library=self.library, max_resident=2)
        self.loaded: set[str] = set()

    @rule(name=st.sampled_from(NAMES))
    def load(self, name: str) -> None:
        assert self.bank.load(self.folders[name]) == name
        self.loaded.add(name)

    @rule(name=st.sampled_from(NAMES))
    def unload(self, name: str) -> None:
        if name in self.loaded:
            self.bank.unload(name)
            self.loaded.remove(name)
        else:
            with pytest.raises(AdapterNotFound):
                self.bank.unload(name)

    @rule(name=st.sampled_from(NAMES))
    def use(self, name: str) -> None:
        if name not in self.loaded:
            with pytest.raises(AdapterNotFound):
                self.bank.use(name)
            return
        with self.bank.use(name):
            torch.testing.assert_close(logits(self.model), with_peft(self.folders[name]), **CLOSE)

    @rule(pair=st.sampled_from([("a", "b"), ("c", "a")]), weight=st.sampled_from([0.5, -1.0]))
    def use_a_sum(self, pair: tuple[str, str], weight: float) -> None:
        if not self.loaded.issuperset(pair):
            return
        first, second = pair
        key = (first, second, weight)
        if key not in self.sums:
            self.sums[key] = with_sum({self.folders[first]: weight, self.folders[second]: 1.0}, self.library)
        with self.bank.use({first: weight, second: 1.0}):
            torch.testing.assert_close(logits(self.model), self.sums[key], **CLOSE)

    @rule(names=st.tuples(st.sampled_from(["a", "b", "dora", None]), st.sampled_from(["a", "c", "dora", None])))
    def use_rows(self, names: tuple[str | None, str | None]) -> None:
        if not self.loaded.issuperset(n for n in names if n is not None):
            return
        with self.bank.rows(list(names)):
            mixed = logits(self.model)
        for row, name in enumerate(names):
            alone = with_peft(None if name is None else self.folders[name])
            torch.testing.assert_close(mixed[row], alone[row], **CLOSE)

    @invariant()
    def base_is_the_same(self) -> None:
        if hasattr(self, "bank"):
            assert self.digest == base_digest(self.model) == self.bank.assert_frozen()
            assert torch.equal(with_peft(None), logits(self.model))
            assert set(self.bank.names) == self.loaded
            assert self.bank.stats.resident <= 2

    def teardown(self) -> None:
        if hasattr(self, "bank"):
            self.bank.close()
            assert (self.digest, self.hooks) == (base_digest(self.model), hooks_of(self.model))


def test_no_order_of_loads_uses_and_evictions_changes_an_answer(tmp_path: Path, library: Library) -> None:
    class Here(Orders):
        folders = make_folders(tmp_path / "adapters", *NAMES)
        sums: dict[tuple[str, str, float], Tensor] = {}  # noqa: RUF012 - filled while it runs

    Here.library = library
    case = Here.TestCase
    case.settings = settings(max_examples=8, stateful_step_count=15, derandomize=True, database=None)
    case().runTest()


def test_each_use_by_many_threads_counts_while_adapters_come_and_go() -> None:
    residency, used = Residency(most=2, most_bytes=None), list[int]()
    adapter = LoadedAdapter(label="x", engine="native", updates={}, size_bytes=1, is_additive=True)

    def use() -> None:
        used.append(sum(residency.hit(name) is not None for name in ("0", "1", "2") * 3000))

    threads = [threading.Thread(target=use) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for load in range(600):
            residency.put(str(load % 3), adapter)
            assert residency.stats.resident <= 2
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)

    assert residency.stats.hits == sum(used)


# ---------------------------------------------------------------- many
@pytest.fixture
def many(tmp_path: Path, amount: Callable[[int, int], int]) -> Iterator[list[Path]]:
    """Copies of a trained adapter, each with one factor that is another; 0.5 GB with `--exhaustive`, which does not stay."""
    tensors = {n: t.bfloat16() for n, t in load_file(SHIPPED / "adapter_model.safetensors").items()}
    config = json.loads((SHIPPED / "adapter_config.json").read_text())
    key = max(name for name in tensors if "lora_B" in name)
    root, generator = tmp_path / "many", torch.Generator().manual_seed(0)
    made = []
    for number in range(amount(72, 1000)):
        folder = root / f"{number:04}"
        folder.mkdir(parents=True)
        changed = tensors[key] + 0.05 * torch.randn(tensors[key].shape, generator=generator)
        save_file(tensors | {key: changed.bfloat16()}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config))
        made.append(folder)
    yield made
    shutil.rmtree(root)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_many_trained_adapters_go_through_sixteen_places(many: list[Path], library: Library) -> None:
    model: Any = load_base(smollm2_base(), dtype="float32")[0]
    ids = torch.arange(100, 108)[None]
    bound = 16 * sum(4 * t.numel() for t in load_file(SHIPPED / "adapter_model.safetensors").values())
    seen: dict[str, Tensor] = {}

    def ask(of: Any) -> Tensor:
        with torch.no_grad():
            return of(ids).logits

    plain = ask(model)
    with AdapterBank(model, library=library, max_resident=16, max_resident_bytes=bound) as bank:
        for number, folder in enumerate(many):
            name = bank.load(folder)
            assert bank.stats.resident_bytes <= bound
            if number % (len(many) // 4) == 0:
                with bank.use(name):
                    seen[name] = ask(model)
        assert (bank.stats.loads, bank.stats.evictions, bank.stats.resident) == (len(many), len(many) - 16, 16)
        for name, answer in seen.items():  # all evicted long ago
            with bank.use(name):
                assert torch.equal(answer, ask(model))
        gc.collect()
        held = sum(isinstance(thing, LoadedAdapter) for thing in gc.get_objects())
        assert (held, len(bank.names), bank.stats.misses) == (16, len(many), len(seen))
        bank.assert_frozen()

    assert torch.equal(plain, ask(model))
    assert len({tuple(answer[0, -1, :5].tolist()) for answer in seen.values()}) == len(seen)
    by_name = {folder.name: folder for folder in many}
    peft = PeftModel.from_pretrained(model, by_name[next(iter(seen))], adapter_name="0000").eval()
    for name, answer in seen.items():
        if name != "0000":
            peft.load_adapter(by_name[name], adapter_name=name)
        peft.set_adapter(name)
        # the same products in float32; ours are added in one operation
        torch.testing.assert_close(answer, ask(peft), rtol=1e-4, atol=1e-3)
