"""`adapt run` with adapters for sequence classification: the label and its probability are those of PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

import adapterhub
from adapterhub.core.specs import parse_name
from adapterhub.library.intake.description import Description
from tests.support.command_line import Adapt
from tests.support.run_library import PROMPT, write_base, write_tokenizer
from tests.support.tiny_models import VOCABULARY, llama, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = [PROMPT, "Hi", "The sea is calm.", "Yo", "Where is the moon?"]


def with_head(base: Path, labels: int) -> Any:
    torch.manual_seed(3)
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classify")
    write_base(folder / "llama")
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    BertModel(bert).save_pretrained(folder / "bert")
    write_tokenizer(folder / "bert", template=None)
    library = Adapt(folder).library
    records = {name: library.bases.add(folder / name, name) for name in ("llama", "bert")}
    for record in records.values():
        library.catalog.put_base(record)
    attention = {"r": 4, "lora_alpha": 16}
    on_llama, on_bert = ["q_proj", "v_proj"], ["query", "value"]
    for seed, (name, base, labels, config) in enumerate(
        [
            ("mood", "llama", 3, LoraConfig(task_type="SEQ_CLS", target_modules=on_llama, **attention)),
            ("topic", "llama", 3, LoraConfig(task_type="SEQ_CLS", target_modules=on_llama, **attention)),
            ("stars", "llama", 1, LoraConfig(task_type="SEQ_CLS", target_modules=on_llama, **attention)),
            ("spam", "bert", 2, LoraConfig(task_type="SEQ_CLS", target_modules=on_bert, **attention)),
            ("names", "bert", 2, LoraConfig(task_type="TOKEN_CLS", target_modules=on_bert, **attention)),
        ],
        1,
    ):
        save_adapter(folder / name, lambda at=folder / base, n=labels: with_head(at, n), config, seed=seed)
        library.add(folder / name, Description(name=parse_name(name), version="1.0.0"), base=records[base])
    save_adapter(folder / "text", llama, LoraConfig(target_modules=on_llama, **attention))
    library.add(folder / "text", Description(name=parse_name("text"), version="1.0.0"), base=records["llama"])
    return folder


@pytest.fixture
def adapt(made: Path) -> Adapt:
    return Adapt(made)


def expected(made: Path, name: str, base: str, labels: int, text: str) -> Tensor:
    """The logits of one text, alone, as PEFT computes them."""
    model = PeftModel.from_pretrained(with_head(made / base, labels), made / name).eval()
    tokens = AutoTokenizer.from_pretrained(made / base)(text, return_tensors="pt")
    with torch.no_grad():
        return model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits[0].float()


@pytest.mark.parametrize(("name", "base", "labels"), [("mood", "llama", 3), ("spam", "bert", 2)])
def test_a_classifier_prints_its_label_and_probability(
    name: str, base: str, labels: int, adapt: Adapt, made: Path
) -> None:
    probabilities = expected(made, name, base, labels, PROMPT).softmax(-1)
    best = int(probabilities.argmax())

    said = adapt.ok("run", name, PROMPT)
    document = adapt.json("run", name, PROMPT)

    assert said == f"LABEL_{best}  {probabilities[best]:.4f}\n"
    assert (document["label"], document["text"] + "\n") == (f"LABEL_{best}", said)
    assert document["probability"] == pytest.approx(float(probabilities[best]), abs=1e-5)
    assert list(document["probabilities"].values()) == pytest.approx(probabilities.tolist(), abs=1e-5)


def test_names_of_labels_are_those_of_a_base_with_as_many(adapt: Adapt, made: Path, tmp_path: Path) -> None:
    path = made / "llama" / "config.json"
    before = path.read_text()
    names = {str(at): name for at, name in enumerate(("sad", "calm", "glad"))}
    path.write_text(
        json.dumps(json.loads(before) | {"id2label": names, "label2id": {v: int(k) for k, v in names.items()}})
    )
    try:
        document = adapt.json("run", "mood", PROMPT)
    finally:
        path.write_text(before)

    assert list(document["probabilities"]) == ["sad", "calm", "glad"]


def test_a_head_of_one_output_prints_its_number(adapt: Adapt, made: Path) -> None:
    document = adapt.json("run", "stars", PROMPT)

    assert float(document["text"]) == pytest.approx(float(expected(made, "stars", "llama", 1, PROMPT)), abs=1e-3)
    assert "label" not in document


def test_rows_of_a_batch_get_the_labels_that_each_gets_alone(adapt: Adapt, made: Path, tmp_path: Path) -> None:
    rows = [{"id": at, "prompt": text, "adapter": "topic" if at % 2 else "mood"} for at, text in enumerate(TEXTS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    answers = adapt.json("run", "--batch", tmp_path / "rows.jsonl", "--batch-size", 3)["answers"]

    for row, answer in zip(rows, answers, strict=True):
        probabilities = expected(made, row["adapter"], "llama", 3, row["prompt"]).softmax(-1)
        assert list(answer["probabilities"].values()) == pytest.approx(probabilities.tolist(), abs=1e-5)
        assert answer["label"] == f"LABEL_{int(probabilities.argmax())}"


def test_python_gives_the_same(adapt: Adapt, made: Path) -> None:
    answers = adapterhub.Library(adapt.folder / adapt.home).run("mood", TEXTS)

    for text, answer in zip(TEXTS, answers, strict=True):
        assert list(answer.probabilities.values()) == pytest.approx(
            expected(made, "mood", "llama", 3, text).softmax(-1).tolist(), abs=1e-5
        )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("mood", PROMPT, "--compare", "text"), 2, "`mood==1.0.0` tells 3 labels apart, and `text==1.0.0` writes text"),
        (("mood", PROMPT, "--compare", "none"), 2, "and `none` writes text"),
        (("mood", PROMPT, "--compare", "stars"), 2, "tells 3 labels apart, and `stars==1.0.0` gives one number"),
        (("names", PROMPT), 11, "`names==1.0.0` is made for TOKEN_CLS; `run` writes text and classifies texts"),
    ],
)
def test_what_no_one_model_does_is_refused_before_a_base_is_loaded(
    words: tuple[str, ...], code: int, said: str, adapt: Adapt
) -> None:
    complaint = adapt.fails(code, "run", *words)

    assert said in complaint
    assert "loading base" not in complaint
