"""One row makes a tuner method known: to configs, to the sorting of tensors, to verify and to the loader's names."""

import pytest
import torch
from safetensors.torch import save_file

from adapterhub.core.errors import MalformedConfig
from adapterhub.formats.peft import methods
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.methods import METHODS, VARIANTS, PeftMethod
from adapterhub.inference.loader.injection import MAKERS
from adapterhub.inference.loader.reading import _factor_pattern
from adapterhub.trust.verify import verify_folder

CONFIG = b'{"peft_type": "NEWTUNE", "base_model_name_or_path": "org/base", "target_modules": ["q"]}'
NAME = "base_model.model.q.newt_scale"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "adapter_config.json").write_bytes(CONFIG)
    save_file({NAME: torch.ones(4)}, tmp_path / "adapter_model.safetensors")
    return tmp_path


@pytest.fixture
def new_row(monkeypatch):
    monkeypatch.setitem(methods._METHODS, "NEWTUNE", PeftMethod(marks=("newt_",), factors=("newt_scale",)))


def test_without_a_row_a_method_is_unknown():
    with pytest.raises(MalformedConfig, match="no release of PEFT has"):
        AdapterConfig.parse(CONFIG, "adapter_config.json")


@pytest.mark.usefixtures("new_row")
def test_a_row_alone_makes_names_marks_and_checks_know_a_method(folder):
    config = AdapterConfig.parse(CONFIG, "adapter_config.json")
    report = verify_folder(folder)

    assert config.methods() == ("NEWTUNE",)
    assert [finding.code for finding in report.findings if finding.severity == "error"] == []
    assert "tensors of NEWTUNE are checked when it is attached" in " ".join(
        finding.message for finding in report.findings
    )
    assert _factor_pattern(config).fullmatch("q.newt_scale")


def test_every_method_with_factors_can_be_set_up():
    assert set(MAKERS) == {name for name, method in METHODS.items() if method.factors}


def test_a_factor_carries_a_mark_of_its_method():
    apart = [
        (name, factor)
        for name, method in METHODS.items()
        for factor in method.factors
        if not factor.startswith(method.marks)
    ]

    assert apart == []


def test_what_adds_up_can_be_attached_and_what_merges_adds_up():
    assert [name for name, method in METHODS.items() if method.adds and not method.factors] == []
    assert [name for name, method in METHODS.items() if method.merges and not method.adds] == []


def test_an_update_that_is_not_its_factors_is_never_merged():
    assert [key for key, one in VARIANTS.items() if one.changes_update and one.merging != "never"] == []
