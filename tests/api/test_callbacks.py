"""`adapterhub.callbacks.AddOnSave`: a real `Trainer` on a model of two layers, whose checkpoints become versions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from adapterhub import Library

STEPS = 6


@pytest.fixture(autouse=True)
def base(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).save_pretrained(tmp_path / "base")


def base_in(folder: Path, library: Library) -> str:
    library.add_base(folder / "base", "tiny")
    return "tiny"


def trained(
    folder: Path,
    callback: Any,
    *,
    steps: int = STEPS,
    limit: int | None = None,
    resume: bool = False,
    losses: tuple[float, ...] = (),
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM, Trainer, TrainingArguments

    torch.manual_seed(0)
    base = LlamaForCausalLM.from_pretrained(folder / "base")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    rows = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(8)]
    arguments = TrainingArguments(
        str(folder / "out"), max_steps=steps, save_steps=2, logging_steps=1, save_total_limit=limit, report_to=[],
        use_cpu=True, per_device_train_batch_size=2, learning_rate=0.01, disable_tqdm=True,
    )  # fmt: skip
    if losses:
        arguments.eval_strategy, arguments.eval_steps, arguments.metric_for_best_model = "steps", 2, "eval_loss"
        arguments.greater_is_better = False
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[callback])
    told = iter(losses)
    if losses:
        evaluate = trainer.evaluate
        trainer.evaluate = lambda *given, **named: evaluate(*given, **named) | {"eval_loss": next(told)}  # type: ignore[method-assign]
    trainer.train(resume_from_checkpoint=resume)


def versions(library: Library) -> list[str]:
    return sorted(build.manifest.version for build in library)


def test_each_checkpoint_is_a_version_with_its_figures_and_a_resume_adds_only_new_ones(tmp_path: Path) -> None:
    from adapterhub.api.callbacks import AddOnSave

    library = Library(tmp_path / "home")

    trained(tmp_path, AddOnSave("acme/legal-qa", library=library, task="legal-qa", base=base_in(tmp_path, library)))
    first = versions(library)
    trained(tmp_path, AddOnSave("acme/legal-qa", library=library, base="tiny"), steps=STEPS + 2, resume=True)

    assert first == ["1.0.0", "1.0.1", "1.0.2"]
    assert versions(library) == [*first, "1.0.3"]
    builds = {build.manifest.version: build.manifest for build in library}
    assert [builds[version].metrics["step"] for version in builds] == [2, 4, 6, 8]
    assert builds["1.0.0"].metrics["loss"] != builds["1.0.3"].metrics["loss"]
    assert builds["1.0.0"].task == "legal-qa"
    assert not [name for name in builds["1.0.3"].metrics if name.endswith("per_second")]


def test_versions_of_deleted_checkpoints_go_when_they_should(tmp_path: Path) -> None:
    from adapterhub.api.callbacks import AddOnSave

    library = Library(tmp_path / "home")

    trained(
        tmp_path,
        AddOnSave("legal-qa", library=library, base=base_in(tmp_path, library), version="2.0.0", prune=True),
        limit=1,
    )

    assert versions(library) == ["2.0.2"]
    assert (tmp_path / "out" / "checkpoint-6").is_dir()


def test_a_library_that_cannot_be_written_never_ends_the_training(tmp_path: Path) -> None:
    from adapterhub.api.callbacks import AddOnSave

    (tmp_path / "home").write_text("no folder")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(tmp_path, AddOnSave("legal-qa", library=tmp_path / "home"))

    said = [str(one.message) for one in caught if "adapterhub did not add the checkpoint" in str(one.message)]
    assert len(said) == STEPS // 2
    assert (tmp_path / "out" / "checkpoint-6" / "adapter_model.safetensors").exists()


def test_a_wrong_name_or_base_is_refused_before_the_training(tmp_path: Path) -> None:
    from adapterhub.api.callbacks import AddOnSave
    from adapterhub.errors import BaseNotFound, SpecError

    with pytest.raises(SpecError):
        AddOnSave("Legal QA!", library=tmp_path)
    with pytest.raises(BaseNotFound):
        AddOnSave("legal-qa", library=tmp_path, base="nothing")


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": "chat"},
        {"task": 5},
        {"description": 5},
        {"license": 5},
        {"task": "x" * 300},
        {"examples": ["x" * 600]},
        {"examples": [5]},
        {"bump": "huge"},
        {"version": "one"},
        {"version": "1.0+local"},
        {"name": "../../outside/x"},
    ],
)
def test_what_no_checkpoint_could_be_added_with_is_refused_before_the_training(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    from adapterhub.api.callbacks import AddOnSave
    from adapterhub.errors import AdapterHubError

    with pytest.raises(AdapterHubError):
        AddOnSave(**{"name": "legal-qa", "library": tmp_path / "home", **wrong})


def test_a_first_version_that_is_taken_is_refused_before_the_training_and_not_after_a_resume(tmp_path: Path) -> None:
    from adapterhub.api.callbacks import AddOnSave
    from adapterhub.errors import ReleaseExists

    library = Library(tmp_path / "home")
    base_in(tmp_path, library)

    def callback() -> AddOnSave:
        return AddOnSave("legal-qa", library=library, base="tiny", version="2.0.0")

    trained(tmp_path, callback())
    trained(tmp_path, callback(), steps=STEPS + 2, resume=True)
    assert versions(library) == ["2.0.0", "2.0.1", "2.0.2", "2.0.3"]
    with pytest.raises(ReleaseExists, match=r"2\.0\.0"):
        trained(tmp_path, callback())


def test_a_resume_prunes_what_the_run_added_before_it_and_nothing_else(tmp_path: Path) -> None:
    from adapterhub.api.callbacks import AddOnSave

    library = Library(tmp_path / "home")
    base_in(tmp_path, library)

    def callback() -> AddOnSave:
        return AddOnSave("legal-qa", library=library, base="tiny", prune=True)

    trained(tmp_path, callback(), limit=2)
    own = versions(library)
    library.add(tmp_path / "out" / "checkpoint-4", name="other", base="tiny")
    trained(tmp_path, callback(), steps=STEPS + 4, limit=1, resume=True)

    kept = [f"{build.full_name} {build.manifest.version}" for build in library]
    assert own == ["1.0.1", "1.0.2"]
    assert sorted(kept) == ["legal-qa 1.0.4", "other 1.0.0"]


def test_a_new_run_in_the_same_folder_prunes_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    from adapterhub.api.callbacks import AddOnSave

    library = Library(tmp_path / "home")
    trained(tmp_path, AddOnSave("legal-qa", library=library, base=base_in(tmp_path, library)))
    trained(tmp_path, AddOnSave("legal-qa", library=library, base="tiny", prune=True), limit=1)

    assert versions(library) == ["1.0.0", "1.0.1", "1.0.2"]


def test_the_last_version_that_was_best_so_far_is_the_best(tmp_path: Path) -> None:
    from adapterhub.api.callbacks import AddOnSave

    library = Library(tmp_path / "home")
    trained(tmp_path, AddOnSave("legal-qa", library=library, base=base_in(tmp_path, library)), losses=(0.5, 0.2, 0.4))
    metrics = {build.manifest.version: build.manifest.metrics for build in library}

    assert [metrics[version].get("best_so_far") for version in sorted(metrics)] == [True, True, None]
    assert not [one for one in metrics.values() if "best" in one]


# ---------------------------------------------------------------- every step
def test_each_step_is_a_version_of_the_stream(tmp_path: Path) -> None:
    from adapterhub.api.callbacks import PublishOnStep

    library = Library(tmp_path / "home")
    stream = library.live(f"agent@{base_in(tmp_path, library)}", keep=None)
    callback = PublishOnStep(stream, every=4)

    trained(tmp_path, callback)
    trained(tmp_path, callback, steps=STEPS + 2, resume=True)

    builds = {build.manifest.version: build.manifest for build in library}
    assert [builds[f"0.0.{n}"].metrics["step"] for n in range(1, 4)] == [4, 6, 8]  # the last step of a training, too
    assert [builds[f"0.0.{n}"].annotations["live"]["step"] for n in range(1, 4)] == [4, 6, 8]
    assert callback.published is not None
    assert callback.published.version == "0.0.3" == library["agent@live"].manifest.version
    assert callback.published.is_durable
    assert "loss" in builds["0.0.3"].metrics
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "out" / "checkpoint-8" / "adapter_model.safetensors")
    kept = load_file(library["agent@live"].folder / "adapter_model.safetensors")
    assert all(saved[name].equal(kept[name]) for name in saved.keys() | kept.keys())


def test_what_goes_wrong_while_publishing_is_a_warning(tmp_path: Path) -> None:
    from adapterhub.api.callbacks import PublishOnStep

    library = Library(tmp_path / "home")
    base_in(tmp_path, library)

    def gate(candidate: Any) -> str | bool:
        if candidate.step == 2:
            raise ZeroDivisionError("no samples")
        return candidate.step != 3 or "reward fell"

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(tmp_path, PublishOnStep(library.live("agent@tiny", gate=gate)), steps=4)

    said = [str(one.message) for one in caught if "adapterhub" in str(one.message)]
    assert said == [
        "adapterhub published step 2 as 0.0.2, which is not current: the gate could not tell: ZeroDivisionError('no samples')",
        "adapterhub published step 3 as 0.0.3, which is not current: reward fell",
    ]
    assert library["agent@live"].manifest.version == "0.0.4"


def test_a_stream_is_wanted_and_a_number_of_steps(tmp_path: Path) -> None:
    from adapterhub.api.callbacks import PublishOnStep
    from adapterhub.errors import UsageProblem

    library = Library(tmp_path / "home")
    base_in(tmp_path, library)
    for wrong in ({"stream": "agent"}, {"stream": library.live("agent@tiny"), "every": 0}):
        with pytest.raises(UsageProblem):
            PublishOnStep(**wrong)  # type: ignore[arg-type]
