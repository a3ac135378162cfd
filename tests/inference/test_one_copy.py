"""The memory that an adapter takes while it is loaded and afterwards: one copy of its numbers, by the bank and by `attach`."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.loader import attach
from adapterhub.library.library import Library

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc"),
]

WIDTH = 2048


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.proj(x)
        return answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of 32 MiB."""
    made = tmp_path_factory.mktemp("wide")
    numbers = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH
    name = "base_model.model.proj.lora_{}.weight"
    save_file({name.format("A"): numbers, name.format("B"): numbers.flip(0)}, made / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": WIDTH, "lora_alpha": WIDTH, "target_modules": ["proj"]}
    (made / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return made


def in_memory(key: str) -> int:
    """`VmRSS` or `VmHWM`, the peak, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


@contextmanager
def peak() -> Iterator[Callable[[], int]]:
    """How many bytes more than at the beginning were in memory at once."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what tests before it left for reuse would hide what is taken now
    before = in_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins again
    yield lambda: in_memory("VmHWM") - before


@pytest.mark.parametrize("way", ["bank", "attach"])
def test_loading_never_holds_a_second_copy(way: str, folder: Path, library: Library) -> None:
    size_bytes = (folder / "adapter_model.safetensors").stat().st_size
    with AdapterBank(Wide(), library=library) as warm:  # what the first load of a process brings into memory
        warm.load(folder)
    with attach(Wide(), folder, library=library):
        pass
    model, taken = Wide(), [0.0]
    while not 0.9 < taken[-1] < 1.3 and len(taken) < 4:  # other threads of a long run may take memory beside it
        with peak() as more:
            loaded = AdapterBank(model, library=library) if way == "bank" else attach(model, folder, library=library)
            with loaded, torch.no_grad():
                if isinstance(loaded, AdapterBank):
                    loaded.use(loaded.load(folder))
                model(torch.ones(1, WIDTH))
                taken.append(more() / size_bytes)
        del loaded

    assert 0.9 < taken[-1] < 1.3, taken
