"""A base whose vocabulary was resized, for a pad token: adapters that leave the embeddings alone still fit it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from adapterhub.core.errors import AdapterHubError, BaseMismatch, RefusedAdapter
from adapterhub.core.specs import parse_name
from adapterhub.formats.base.comparison import compare
from adapterhub.formats.base.fingerprint import COPY_HINT, BaseVerdict
from adapterhub.inference.bank import AdapterBank
from adapterhub.inference.loader import attach
from adapterhub.inference.loader.text import load_base
from adapterhub.library.audit import Surroundings, audit, subject_of_build
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.weights.fuse import prepare
from tests.support.real_base import smollm2_base
from tests.support.tiny_models import VOCABULARY, llama, logits, plain_peft, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn of much that is meant here

RESIZED = BaseVerdict.SAME_WEIGHTS_RESIZED_VOCABULARY
ON_ATTENTION = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])


def grown(model: Any = None, tokens: int = VOCABULARY + 1) -> nn.Module:
    model = llama() if model is None else model
    torch.manual_seed(5)
    model.resize_token_embeddings(tokens, mean_resizing=False)
    return model.eval()


def register(library: Library, folder: Path, model: Any) -> BaseRecord:
    model.save_pretrained(folder)
    record = library.bases.add(folder, folder.name)
    library.catalog.put_base(record)
    return record


@pytest.fixture
def base(library: Library, tmp_path: Path) -> BaseRecord:
    return register(library, tmp_path / "base-7b", llama())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", llama, ON_ATTENTION)


def add(library: Library, folder: Path, base: BaseRecord) -> Any:
    return library.add(folder, Description(name=parse_name("legal-qa"), version="1.0.0"), base=base)


# ---------------------------------------------------------------- the verdict
@pytest.mark.parametrize("tokens", [VOCABULARY + 1, VOCABULARY + 64, VOCABULARY - 3])
def test_model_in_memory_and_registered_base_have_the_verdict(
    tokens: int, library: Library, base: BaseRecord, folder: Path, tmp_path: Path
) -> None:
    other = register(library, tmp_path / "other", grown(tokens=tokens))
    add(library, folder, base)

    assert compare(base.fingerprint, other.fingerprint).verdict is RESIZED
    assert compare(other.fingerprint, base.fingerprint).verdict is RESIZED
    assert attach(grown(tokens=tokens), "legal-qa", library=library).adapters[0].verdict is RESIZED


@pytest.mark.parametrize(
    ("make", "verdict"),
    [
        (lambda: grown(llama(seed=1)), BaseVerdict.DIFFERENT),
        (lambda: grown(llama(num_hidden_layers=1)), BaseVerdict.DIFFERENT),
        (lambda: grown(llama(hidden_size=64)), BaseVerdict.DIFFERENT),
        (lambda: grown().to(torch.bfloat16), RESIZED),
    ],
    ids=["another seed", "fewer layers", "wider", "bfloat16"],
)
def test_another_model_of_another_vocabulary_is_another_base(
    make: Callable[[], Any], verdict: BaseVerdict, library: Library, base: BaseRecord, folder: Path, tmp_path: Path
) -> None:
    other = register(library, tmp_path / "other", make())
    add(library, folder, base)

    assert compare(base.fingerprint, other.fingerprint).verdict is verdict
    if verdict is RESIZED:
        assert attach(make(), "legal-qa", library=library).adapters[0].verdict is verdict
    else:
        with pytest.raises(BaseMismatch):
            attach(make(), "legal-qa", library=library)


def test_embeddings_of_the_same_shape_with_other_values_are_another_base(
    library: Library, base: BaseRecord, tmp_path: Path
) -> None:
    model = llama()
    nn.init.normal_(model.get_input_embeddings().weight)

    other = register(library, tmp_path / "other", model)

    assert compare(base.fingerprint, other.fingerprint).verdict is BaseVerdict.SAME_SHAPES


# ---------------------------------------------------------------- adapters that fit
def test_adapter_of_the_attention_runs_as_with_peft_and_warns_once(
    library: Library, base: BaseRecord, folder: Path
) -> None:
    add(library, folder, base)
    expected = logits(plain_peft(grown, folder))

    attached = attach(grown(), "legal-qa", library=library)
    model = grown()
    with AdapterBank(model, library=library) as bank:
        bank.load("legal-qa")
        with bank.use("legal-qa"):
            from_bank = logits(model)

    assert torch.equal(expected, logits(attached.model))
    torch.testing.assert_close(expected, from_bank)
    assert not torch.equal(expected, logits(grown()))
    (warning,) = attached.adapters[0].warnings
    assert "was made for base `base-7b` before its vocabulary was resized" in warning
    assert "`lm_head.weight` and `model.embed_tokens.weight`" in warning


def test_installed_adapter_is_found_and_verified_for_the_resized_base(
    library: Library, base: BaseRecord, folder: Path, tmp_path: Path
) -> None:
    build = add(library, folder, base).build
    other = register(library, tmp_path / "padded", grown())

    attached = attach(grown(), "legal-qa@padded", library=library)
    report = library.verify_build(build, other)

    assert attached.adapters[0].verdict is RESIZED
    assert (report.errors, [f.code for f in report.warnings]) == ((), ["W_BASE_RESIZED"])


@pytest.mark.exhaustive
def test_adapter_of_real_smollm2_has_equal_logits_once_a_pad_token_is_added(library: Library, tmp_path: Path) -> None:
    record = library.bases.add(smollm2_base(), "smollm2")
    library.catalog.put_base(record)
    model: Any
    model, tokenizer = load_base(smollm2_base(), dtype="float32")
    ids = tokenizer("The parties agree that", return_tensors="pt")

    def asked(of: Any) -> Tensor:
        with torch.no_grad():
            return of(**ids).logits

    tokens = model.config.vocab_size
    adapter = save_adapter(tmp_path / "a", lambda: model, LoraConfig(r=4, target_modules=["q_proj"]))
    model, _ = load_base(smollm2_base(), dtype="float32")
    add(library, adapter, record)
    with attach(model, "legal-qa", library=library):
        before = asked(model)
    grown(model, tokens + 1)

    with attach(model, "legal-qa", library=library) as attached:
        assert attached.adapters[0].verdict is RESIZED
        after = asked(model)

    assert after.shape[-1] == tokens + 1
    assert torch.equal(before, after[..., :tokens])
    assert torch.equal(after, asked(PeftModel.from_pretrained(model, adapter).eval()))


# ---------------------------------------------------------------- adapters that do not fit
ON_HEAD = LoraConfig(r=4, target_modules=["q_proj", "lm_head"])
ON_EMBEDDING = LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"])
SAVED = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])


@pytest.mark.parametrize("config", [ON_HEAD, ON_EMBEDDING, SAVED], ids=["lm_head", "embed_tokens", "modules_to_save"])
def test_adapter_with_a_size_of_the_vocabulary_is_refused_with_the_way_out(
    config: LoraConfig, library: Library, base: BaseRecord, tmp_path: Path
) -> None:
    trained = save_adapter(tmp_path / "a", grown, config)

    with pytest.raises(AdapterHubError) as refusal:
        attach(llama(), trained, library=library)
    with pytest.raises(AdapterHubError) as not_added:
        add(library, trained, base)

    assert "trained with 65 tokens, and this base has 64: use the base after" in not_added.value.hint
    assert refusal.value.hint == (not_added.value.hint if config is SAVED else COPY_HINT)
    fitted = attach(grown(), trained, library=library)
    assert torch.equal(logits(plain_peft(grown, trained)), logits(fitted.model))


def test_copy_of_a_resized_embedding_is_refused_with_the_way_out(
    library: Library, base: BaseRecord, tmp_path: Path
) -> None:
    from peft import get_peft_model

    trained = tmp_path / "a"
    get_peft_model(grown(), ON_ATTENTION).save_pretrained(trained, save_embedding_layers=True)

    with pytest.raises(RefusedAdapter) as refusal:
        attach(llama(), trained, library=library)
    with pytest.raises(RefusedAdapter) as not_added:
        add(library, trained, base)

    assert "save_embedding_layers=False" in refusal.value.hint
    assert refusal.value.hint == not_added.value.hint
    register(library, tmp_path / "padded", grown())
    assert attach(grown(), trained, library=library)


# ---------------------------------------------------------------- without a model in memory
def test_fusing_into_the_resized_base_gives_what_attaching_gives(
    library: Library, base: BaseRecord, folder: Path, tmp_path: Path
) -> None:
    add(library, folder, base)
    register(library, tmp_path / "padded", grown())

    with prepare("legal-qa", tmp_path / "fused", library=library, base="padded") as fusion:
        fusion.write()

    assert any("with a vocabulary of another size" in warning for warning in fusion.warnings)
    expected = logits(attach(grown(), "legal-qa", library=library).model)
    torch.testing.assert_close(expected, logits(LlamaForCausalLM.from_pretrained(tmp_path / "fused").eval()))


def test_audit_tells_that_the_folder_of_a_base_was_resized(
    library: Library, base: BaseRecord, folder: Path, tmp_path: Path
) -> None:
    build = add(library, folder, base).build
    grown().save_pretrained(tmp_path / "base-7b")

    around = Surroundings(library=library, with_bytes=True)
    [audited] = audit([subject_of_build(build)], around)

    assert [f.code for f in audited.report.errors] == ["E_BASE_MISMATCH"]
