"""One class of models: an adapter of PEFT on it under each name that its modules have, by `verify`, `attach` and the bank."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from adapterhub.core.errors import AdapterHubError
from adapterhub.core.specs import parse_name
from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.loader import attach
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.trust.verify import verify_folder
from tests.dialects.tiny import answer, build, inputs_of

PREFIX = "base_model.model."
CLOSE = 1e-6
LINEAR = (nn.Linear, Conv1D)
STACKED = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "gate"}
"""What PEFT takes for projections of experts in models that have them stacked."""
MAMBA = {"out_proj"}
"""What PEFT refuses in Mamba models."""


@dataclass(frozen=True)
class Row:
    """The results for one class and one set of names; errors are relative to what the adapter changes."""

    name: str
    names: str = "memory"
    peft: str = ""
    verify: str = ""
    attached: str = ""
    bank: str = ""

    @property
    def is_right(self) -> bool:
        """Whether verify, attach and the bank agree, and nothing that PEFT reloads is wrong or refused."""
        done = [_is_close(self.attached), _is_close(self.bank)]
        return self.verify == "ok" and all(done) if _is_close(self.peft) else (self.verify == "ok") == all(done)

    def __str__(self) -> str:
        cells = (
            f"{self.name:44}",
            f"{self.names:7}",
            f"{self.peft:9}",
            f"{self.verify:9}",
            f"{self.attached:9}",
            self.bank,
        )
        return " ".join(cells).rstrip()


def _is_close(text: str) -> bool:
    try:
        return float(text) <= CLOSE
    except ValueError:
        return False


class Case:
    """A tiny base in a library, and an adapter that PEFT made for it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.model = build(name)
        self.kind = type(self.model)
        self.inputs = _fitting(self.model)
        self.model.save_pretrained(folder / "base")
        self.library = Library(folder / "home")
        self.base = self.library.bases.add(folder / "base", "b")
        self.library.catalog.put_base(self.base)
        self.called: list[str] = []
        hooks = [
            module.register_forward_hook(lambda *_, name=name: self.called.append(name))
            for name, module in self.model.named_modules()
            if isinstance(module, LINEAR)
        ]
        self.bare = answer(self.model, self.inputs)
        for hook in hooks:
            hook.remove()
        self.called = list(dict.fromkeys(self.called))

    def loaded(self, kind: type[nn.Module] | None = None) -> nn.Module:
        """The base, from its files."""
        model: nn.Module = (kind or self.kind).from_pretrained(self.folder / "base").eval()
        return model

    def error(self, found: Tensor, truth: Tensor) -> str:
        """The error as a text: 0 is right, 1 is as if the adapter were ignored."""
        return f"{float((found - truth).norm() / (truth - self.bare).norm()):.1e}"

    def made(self) -> tuple[Path, Tensor]:
        """The folder of a LoRA on the most frequent linear layers, and what PEFT says with it."""
        counts = Counter(name.rpartition(".")[2] for name in self.called if any(map(str.isdecimal, name.split("."))))
        others = {n.rpartition(".")[2] for n, m in self.model.named_modules() if not isinstance(m, LINEAR)}
        if any(parameter.ndim > 2 and "experts" in name for name, parameter in self.model.named_parameters()):
            others |= STACKED
        if "mamba" in self.model.config.model_type:
            others |= MAMBA
        last = [name for name, _ in counts.most_common() if name not in others and not name.isdecimal()][:4]
        targets = [name for name in self.called if name.endswith(tuple(f".{end}" for end in last))]
        config = LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False)
        torch.manual_seed(1)
        wrapped = get_peft_model(build(self.name), config).eval()
        truth = answer(wrapped, self.inputs)
        wrapped.save_pretrained(self.folder / "memory")
        return self.folder / "memory", truth

    def renamed(self, adapter: Path) -> Path | None:
        """The same adapter under the names of the base's files, found by content; None if these are the same."""
        stored = {
            t.numpy().tobytes(): n
            for p in (self.folder / "base").glob("*.safetensors")
            for n, t in load_file(p).items()
        }
        names = {
            name.removesuffix(".weight"): other.removesuffix(".weight")
            for name, parameter in self.model.named_parameters()
            if (other := stored.get(parameter.detach().numpy().tobytes())) is not None and name.endswith(".weight")
        }
        return self.copy(adapter, "files", names.get)

    def copy(self, adapter: Path, into: str, name_of: Callable[[str], str | None]) -> Path | None:
        """The adapter with other names; None if a module has none, or all have the same."""
        tensors, targets = {}, {}
        for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
            module, _, rest = name.removeprefix(PREFIX).partition(".lora_")
            other = targets[module] = name_of(module)
            if other is None:
                return None
            tensors[f"{PREFIX}{other}.lora_{rest}"] = tensor
        if all(module == other for module, other in targets.items()):
            return None
        config = json.loads((adapter / "adapter_config.json").read_text())
        out = self.folder / into
        out.mkdir()
        save_file(tensors, out / "adapter_model.safetensors")
        (out / "adapter_config.json").write_text(json.dumps(config | {"target_modules": sorted(targets.values())}))
        return out

    def as_text(self, adapter: Path) -> Path | None:
        """The same adapter under the names of the text model alone; None if the base is one, or it changes more."""
        text = self.model.config.get_text_config()
        if text is self.model.config:
            return None
        found = (name for name, m in self.model.named_modules() if name and getattr(m, "config", None) is text)
        part = next(found, None)
        if part is None:
            return None
        return self.copy(
            adapter, "inner", lambda module: f"model{module[len(part) :]}" if module.startswith(f"{part}.") else None
        )

    def text(self) -> tuple[Path, Tensor] | None:
        """An adapter for the text model alone, and what PEFT says with it; None if there is no such model."""
        config = self.model.config
        if config.get_text_config() is config or "input_ids" not in self.inputs:
            return None
        try:
            inner = AutoModelForCausalLM.from_pretrained(self.folder / "base").eval()
            same = torch.allclose(answer(inner, self.inputs), self.bare, atol=1e-5)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError):
            return None
        if type(inner) is self.kind or not same:
            return None
        torch.manual_seed(2)
        targets = ["q_proj", "v_proj"]
        wrapped = get_peft_model(
            inner, LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False)
        ).eval()
        truth = answer(wrapped, self.inputs)
        wrapped.save_pretrained(self.folder / "text")
        return self.folder / "text", truth

    def row(
        self, adapter: Path, truth: Tensor, names: str, *, with_peft: bool, kind: type[nn.Module] | None = None
    ) -> Row:
        """Verify, attach and the bank, with the adapter in `adapter`, on the base loaded as a `kind`."""
        row = Row(self.name, names)
        if with_peft:
            again = PeftModel.from_pretrained(self.loaded(), adapter).eval()
            row = replace(row, peft=self.error(answer(again, self.inputs), truth))
        report = verify_folder(adapter, base_tensors=self.base.tensors, base_type=self.base.hints.model_type)
        row = replace(row, verify=report.errors[0].code if report.errors else "ok")
        try:
            self.library.add(adapter, Description(name=parse_name(names), version="1.0.0"), base=self.base)
            with attach(self.loaded(kind), names, library=self.library) as attached:
                row = replace(row, attached=self.error(answer(attached.model, self.inputs), truth))
        except AdapterHubError as error:
            row = replace(row, attached=_said(error))
        try:
            model = self.loaded(kind)
            with AdapterBank(model, library=self.library) as bank, bank.use(bank.load(names)):
                row = replace(row, bank=self.error(answer(model, self.inputs), truth))
        except AdapterHubError as error:
            row = replace(row, bank=_said(error))
        return row


def _said(error: AdapterHubError) -> str:
    return f"{type(error).__name__}: {' | '.join(str(error).splitlines())}"


def _fitting(model: nn.Module) -> Mapping[str, Tensor]:
    for inputs in inputs_of(model):
        try:
            if torch.isfinite(answer(model, inputs)).all():
                return inputs
        except Exception:  # noqa: BLE001, S112 - the next may fit
            continue
    raise ValueError("no input fits")


def prove(name: str, folder: Path) -> list[Row]:
    """The rows of one class of models, by the names that the adapter has.

    `memory` and `files`: those of the base. `inner`: those of the text model, of an adapter that changes nothing else.
    `text`: made by PEFT on the text model. `outer`: the names in memory again, on the text model.
    """
    case = Case(name, folder)
    adapter, truth = case.made()
    rows = [case.row(adapter, truth, "memory", with_peft=True)]
    if (renamed := case.renamed(adapter)) is not None:
        rows.append(case.row(renamed, truth, "files", with_peft=False))
    if (inner := case.as_text(adapter)) is not None:
        rows.append(case.row(inner, truth, "inner", with_peft=False))
    if (text := case.text()) is not None:
        rows.append(case.row(*text, "text", with_peft=False))
        rows.append(case.row(adapter, truth, "outer", with_peft=False, kind=type(case.loaded(AutoModelForCausalLM))))
    return rows
