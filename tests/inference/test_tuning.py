"""Finding weights on examples: what is read, what is measured, what the search keeps, and that it works on a real base."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adapterhub.core.errors import Malformed, MergeRefused, NotFound, UsageProblem
from adapterhub.inference.contracts.answers import plan_of_examples
from adapterhub.inference.loader import attach, base_digest
from adapterhub.inference.tuning import (
    BATCH_TOKENS,
    Encoded,
    Example,
    Losses,
    TrainingTurn,
    encode,
    read_examples,
    tune,
)
from adapterhub.library.library import Library
from tests.support.real_base import smollm2_base
from tests.support.tiny_models import VOCABULARY, gpt2, llama, logits, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn of much that is meant here

SHIPPED = Path(__file__).resolve().parent.parent.parent / "adapterhub" / "cli" / "start" / "demo_run" / "adapters"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def tiny_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    words = ["<unk>", "<end>", "system", "user", "assistant", *(f"w{i}" for i in range(VOCABULARY - 5))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=template)  # noqa: S106


def words(seed: int, count: int) -> str:
    return " ".join(f"w{random.Random(f'{seed} {i}').randrange(VOCABULARY - 5)}" for i in range(count))


EXAMPLES = [Example(prompt=words(i, 3 + i % 4), completion=" " + words(100 + i, 1 + i % 3)) for i in range(12)]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    return [save_adapter(tmp_path / str(seed), llama, config, seed=seed) for seed in (1, 2, 3)]


# ---------------------------------------------------------------- examples


def written(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "examples.jsonl"
    path.write_bytes(b"\n".join(ln if isinstance(ln, bytes) else json.dumps(ln).encode() for ln in lines))
    return path


def test_three_forms_are_read(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    path = written(tmp_path, {"prompt": "p", "completion": "c"}, b"", {"messages": messages}, {"text": "t"}, b"")

    assert read_examples(path) == (
        Example(prompt="p", completion="c", line=1),
        Example(prompt=(TrainingTurn("system", ""), TrainingTurn("user", "q")), completion="a", line=3),
        Example(prompt=None, completion="t", line=4),
    )


def test_a_recording_takes_prompts_alone(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "s"}, QUESTION]
    lines = ({"prompt": "p"}, {"prompt": "p", "completion": "c"}, {"messages": turns}, {"messages": [QUESTION]})
    plan = plan_of_examples(written(tmp_path, *lines))

    assert [one.completion for one in plan.goldens] == [None, "c", None, None]
    assert [one.asked for one in plan.goldens][:2] == ["p", "p"]
    assert len(plan.goldens[2].asked) == 2
    for wrong in ({"prompt": "p", "completion": ""}, {"messages": []}, {"messages": [turns[0]]}, {"text": "t"}):
        with pytest.raises(Malformed, match="line 1"):
            plan_of_examples(written(tmp_path, wrong))


QUESTION = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"text": "a", "text": "b"}', "given twice"),
        (b"NaN", "NaN is not JSON"),
        ([1], "contains [1], expected an object"),
        ({}, "has nothing, expected"),
        ({"prompt": "p"}, "has `prompt`, expected `prompt` and `completion`"),
        ({"prompt": "p", "completion": "c", "id": 1}, "`id`"),
        ({"text": "t", "prompt": "p"}, "expected"),
        ({"prompt": 1, "completion": "c"}, "`prompt` is 1, expected text"),
        ({"prompt": "p", "completion": ""}, "`completion` is empty"),
        ({"text": ""}, "`text` is empty"),
        ({"messages": [QUESTION]}, "at least two turns"),
        ({"messages": [QUESTION, QUESTION]}, "does not end with the assistant's answer"),
        ({"messages": [QUESTION, {"role": "tool", "content": "x"}]}, "`messages[1]` is"),
        ({"messages": [{"role": "user"}, QUESTION]}, "`messages[0]` is"),
        ({"messages": [{"role": "user", "content": None}, QUESTION]}, "`content` is None"),
        ({"text": "x" * (1 << 20)}, "at most 1048576 are read"),
        (b"[" * 100_000, "nested"),
    ],
)
def test_a_bad_line_is_told_by_number(tmp_path: Path, line: object, said: str) -> None:
    path = written(tmp_path, {"text": "fine"}, line, b"nonsense")

    with pytest.raises(Malformed) as refused:
        read_examples(path)

    lines = refused.value.message.splitlines()
    assert lines[1].startswith("  line 2: ")
    assert said in lines[1]
    assert lines[2].startswith("  line 3: not JSON")


def test_files_that_hold_no_or_too_many_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="no examples"):
        read_examples(written(tmp_path, b"", b" "))
    with pytest.raises(Malformed, match="1001 examples, expected at most 1000"):
        read_examples(written(tmp_path, *[{"text": "t"}] * 1001))
    with pytest.raises(Malformed, match="more than 16 MB"):
        read_examples(written(tmp_path, b" " * ((16 << 20) + 1)))
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(NotFound, match=r"no such file|cannot read"):
            read_examples(path)


# ---------------------------------------------------------------- tokens


def wanted_text(tokenizer: Any, one: Encoded) -> str:
    return tokenizer.decode(list(one.tokens[one.first :]))


def test_what_follows_the_prompt_is_wanted_with_an_end_mark() -> None:
    tokenizer, model = tiny_tokenizer(), llama()

    plain, text, chat = encode(
        tokenizer,
        model,
        [
            Example(prompt="w1 w2", completion=" w3 w4"),
            Example(prompt=None, completion="w1 w2 w3"),
            Example(prompt=(TrainingTurn("system", "w9"), TrainingTurn("user", "w1")), completion="w2"),
        ],
    )

    assert wanted_text(tokenizer, plain) == "w3 w4 <end>"
    assert wanted_text(tokenizer, text) == "w2 w3"  # nothing predicts the first token
    assert tokenizer.decode(list(chat.tokens)) == "system w9 <end> user w1 <end> assistant w2 <end>"
    assert wanted_text(tokenizer, chat) == "w2 <end>"


@pytest.mark.slow
def test_a_real_tokenizer_keeps_prompt_and_completion_apart() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_base(), local_files_only=True)
    model = llama(vocab_size=len(tokenizer))
    turns = (TrainingTurn("user", "Hello!"),)

    plain, joined, chat = encode(
        tokenizer,
        model,
        [
            Example(prompt="Rosa buys 3 lamps.", completion='\n{"buyer": "Rosa"}'),
            Example(prompt="un", completion="believable"),  # one token across the seam belongs to what is wanted
            Example(prompt=turns, completion="Ahoy, matey"),
        ],
    )

    assert wanted_text(tokenizer, plain) == '\n{"buyer": "Rosa"}<|im_end|>'
    assert wanted_text(tokenizer, joined).endswith("believable<|im_end|>")
    assert wanted_text(tokenizer, chat) == "Ahoy, matey<|im_end|>\n"


def test_examples_that_the_base_cannot_run_are_all_told() -> None:
    tokenizer, model = tiny_tokenizer(), llama(max_position_embeddings=8)
    refusing = tiny_tokenizer("{{ raise_exception('no system turn') }}")
    rewriting = tiny_tokenizer("{{ messages | length }} {{ messages[0].content }}")
    chat = Example(prompt=(TrainingTurn("user", "w1"),), completion="w2", line=7)

    with pytest.raises(Malformed, match=r"example 1: 11 tokens, expected at most 8(.|\n)*line 3: has no target token"):
        encode(
            tokenizer,
            model,
            [Example(prompt=words(0, 8), completion=" w1 w2"), Example(prompt=None, completion="w1", line=3)],
        )
    with pytest.raises(Malformed, match="line 7: the base's chat template refuses it: no system turn"):
        encode(refusing, model, [chat])
    with pytest.raises(Malformed, match="line 7: the base's chat template changes the text"):
        encode(rewriting, model, [chat])
    with pytest.raises(UsageProblem, match="no chat template"):
        encode(tiny_tokenizer(None), model, [chat])


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_loss_is_that_of_one_example_after_the_other(make: Any) -> None:
    model = make()
    generator = random.Random(0)
    encoded = [
        Encoded(tokens=tuple(generator.randrange(VOCABULARY) for _ in range(length)), first=first)
        for length, first in [(9, 3), (2, 1), (30, 29), (17, 1), (17, 8), (5, 4)] * 20
    ]
    assert sum(len(e.tokens) for e in encoded) > BATCH_TOKENS

    mean = Losses(encoded, model).mean(model)

    total, wanted = 0.0, 0
    for one in encoded:
        with torch.no_grad():
            predicted = model(torch.tensor([one.tokens])).logits[0].double().log_softmax(-1)
        total -= sum(float(predicted[i - 1, one.tokens[i]]) for i in range(one.first, len(one.tokens)))
        wanted += len(one.tokens) - one.first
    assert mean == pytest.approx(total / wanted, rel=1e-5)


def test_a_loss_that_is_no_number_is_infinite() -> None:
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[0] = math.nan

    assert Losses([Encoded(tokens=(1, 2, 3), first=1)], model).mean(model) == math.inf


# ---------------------------------------------------------------- weights in place


def test_weighing_again_is_attaching_with_those_weights(folders: list[Path], library: Library) -> None:
    with attach(llama(), folders, weights=[1, 0.5, 0], library=library) as attached:
        for weights in ([0.3, -1.2, 0.7], [0.0, 0.0, 0.0], [0.25, 2.0, 0.0]):
            attached.weigh(weights)

            with attach(llama(), folders, weights=weights, library=library) as fresh:
                assert torch.equal(logits(attached.model), logits(fresh.model))
                assert attached.explain() == fresh.explain()
            assert [a.weight for a in attached.adapters] == weights
        attached.weigh([1, 2, 3])
        assert torch.equal(logits(attached.detach()), logits(llama()))


def test_weights_that_make_no_sense_change_nothing(folders: list[Path], library: Library, tmp_path: Path) -> None:
    attached = attach(llama(), folders, weights=[1, 0.5, 0], library=library)
    before = logits(attached.model)

    for weights in ([1.0, 2.0], [1.0, 2.0, math.nan], [1.0, 2.0, 1e9]):
        with pytest.raises(UsageProblem, match="weight"):
            attached.weigh(weights)
    assert torch.equal(logits(attached.model), before)
    attached.detach()
    with pytest.raises(UsageProblem, match="detached"):
        attached.weigh([1.0, 2.0, 3.0])
    dora = save_adapter(tmp_path / "dora", llama, LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
    with attach(llama(), dora, library=library) as alone, pytest.raises(MergeRefused, match="DoRA"):
        alone.weigh([0.5])


# ---------------------------------------------------------------- the search


def test_the_search_keeps_what_it_promises(folders: list[Path], library: Library) -> None:
    model, tokenizer, calls = llama(), tiny_tokenizer(), []
    digest, shared = base_digest(model), np.random.get_state()[1].copy()  # noqa: NPY002 - the shared one is meant

    few = EXAMPLES[:5]  # too few to hold some out
    tuned = tune(model, tokenizer, folders, few, budget=40, library=library, progress=lambda *c: calls.append(c))

    def penalised(loss: float, weights: tuple[float, ...]) -> float:
        return loss + 0.05 * sum(map(abs, weights)) / 3

    found = penalised(tuned.loss_after, tuned.weights)
    assert found < penalised(tuned.loss_before, (1 / 3,) * 3)
    assert all(found < penalised(loss, (1.0, 0.0, 0.0)) for loss in tuned.single_losses)
    assert all(abs(w) <= 1.5 and w == round(w, 4) for w in tuned.weights)
    assert calls == [(i + 1, 40) for i in range(tuned.evaluations)]
    assert (tuned.evaluations, tuned.searched, tuned.reported, tuned.is_held_out) == (40, 5, 5, False)
    # Every loss is that of adapters attached in the plain way.
    measure = Losses(encode(tokenizer, model, few), model)
    assert tuned.base_loss == pytest.approx(measure.mean(model), rel=1e-6)
    with attach(model, folders, weights=tuned.weights, library=library) as attached:
        assert tuned.loss_after == pytest.approx(measure.mean(attached.model), rel=1e-6)
    # Nothing is left behind.
    assert base_digest(model) == digest
    assert np.array_equal(np.random.get_state()[1], shared)  # noqa: NPY002 - as above


def test_the_same_seed_gives_the_same_weights(folders: list[Path], library: Library) -> None:
    def found(seed: int, state: int) -> Any:
        np.random.seed(state)  # noqa: NPY002 - which must not matter
        return tune(llama(), tiny_tokenizer(), folders, EXAMPLES[:5], budget=20, seed=seed, library=library)

    assert found(3, 0) == found(3, 1)
    assert found(3, 0).weights != found(4, 0).weights


def test_half_of_enough_examples_is_held_out_and_equal_ones_stay_together(
    folders: list[Path], library: Library
) -> None:
    tuned = tune(llama(), tiny_tokenizer(), folders, EXAMPLES, budget=6, library=library)
    repeated = tune(llama(), tiny_tokenizer(), folders, [*EXAMPLES[:7]] * 3, budget=6, library=library)

    assert (tuned.searched, tuned.reported, tuned.is_held_out) == (6, 6, True)
    assert (repeated.searched, repeated.reported, repeated.is_held_out) == (21, 21, False)


def test_a_penalty_that_outweighs_all_finds_small_weights(folders: list[Path], library: Library) -> None:
    tuned = tune(llama(), tiny_tokenizer(), folders[:2], EXAMPLES[:5], budget=60, l1=100.0, library=library)

    assert sum(map(abs, tuned.weights)) < 0.5


@pytest.mark.parametrize("seed", range(2))
def test_what_is_found_is_never_worse_than_equal_weights_where_it_is_reported(
    folders: list[Path], library: Library, seed: int
) -> None:
    tuned = tune(llama(), tiny_tokenizer(), folders, EXAMPLES, budget=20, seed=seed, l1=0.0, library=library)

    assert tuned.is_held_out
    assert tuned.is_better is (tuned.loss_after < tuned.loss_before)
    assert tuned.is_better or (tuned.weights, tuned.loss_after) == ((0.3333,) * 3, tuned.loss_before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"adapters": 1}, "at least two adapters"),
        ({"examples": ()}, "at least one example"),
        ({"budget": 4}, "budget 4, expected at least 5"),
        ({"l1": -0.1}, "l1 -0.1"),
        ({"l1": math.nan}, "l1 nan"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_what_cannot_be_searched_with_is_refused(
    change: dict[str, Any], said: str, folders: list[Path], library: Library
) -> None:
    options = {"budget": 20, "library": library} | {
        k: v for k, v in change.items() if k not in ("adapters", "examples")
    }
    adapters, examples = folders[: change.get("adapters", 3)], change.get("examples", EXAMPLES)

    with pytest.raises(UsageProblem, match=said):
        tune(llama(), tiny_tokenizer(), adapters, examples, **options)


def test_a_model_in_training_mode_is_refused(folders: list[Path], library: Library) -> None:
    with pytest.raises(UsageProblem, match="training mode"):
        tune(llama().train(), tiny_tokenizer(), folders, EXAMPLES, library=library)


def test_the_missing_package_is_named_with_the_extra(
    folders: list[Path], library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)

    with pytest.raises(UsageProblem, match="`cma`") as refused:
        tune(llama(), tiny_tokenizer(), folders, EXAMPLES, library=library)

    assert refused.value.hint == "`pip install 'adapterhub[tune]'` installs it"


@pytest.mark.exhaustive
def test_weights_for_orders_are_found_on_a_real_base(library: Library) -> None:
    from adapterhub.cli.start.demo_run.tasks import make_tasks
    from adapterhub.inference.loader.text import load_base

    model, tokenizer = load_base(smollm2_base(), dtype="float32")
    orders = make_tasks()[0].held_out
    examples = [Example(prompt=e.prompt, completion=e.answer) for e in orders[::8]]

    tuned = tune(
        model, tokenizer, [SHIPPED / "json", SHIPPED / "pirate"], examples, budget=14, l1=0.01, library=library
    )

    assert tuned.is_held_out
    assert tuned.loss_after < tuned.loss_before / 2
    # The penalty may trade loss for smaller weights: a half of l1, since the best single one has 1 of 2 weights.
    assert tuned.loss_after < min(tuned.single_losses) + 0.01 / 2 + 0.005  # and the held-out half differs a little
    assert tuned.weights[0] > tuned.weights[1]
    assert min(tuned.single_losses) < tuned.loss_before < tuned.base_loss
