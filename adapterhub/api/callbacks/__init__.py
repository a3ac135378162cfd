"""Callbacks for training with transformers or TRL: `adapterhub.callbacks`.

from adapterhub import callbacks

trainer = Trainer(model, args, train_dataset=data, callbacks=[callbacks.AddOnSave("legal-qa", base="base-7b")])

`PublishOnStep` publishes the weights in memory, for those who follow the training.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from transformers import TrainerCallback  # noqa: TID253 - its class is what a callback derives from

from adapterhub.api.library import Library
from adapterhub.api.opened import BaseLike, record_of
from adapterhub.core.arguments import Count, parsed
from adapterhub.core.digests import canonical_json
from adapterhub.core.disk.files import digest_of_file, read_json, write_durably
from adapterhub.core.errors import NotFound
from adapterhub.core.specs import parse_name, parse_namespace, parse_released
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.library.intake.clashes import Bump, check_naming
from adapterhub.library.intake.description import Description, check_description
from adapterhub.live.stream import LiveStream

if TYPE_CHECKING:
    import os

    from transformers import TrainerControl, TrainerState, TrainingArguments

    from adapterhub.formats.prompts.form import PromptForm
    from adapterhub.library.following import Published
    from adapterhub.library.store.catalog import Installed

__all__ = ["AddOnSave", "PublishOnStep"]

RUN_FILE: Final = "adapterhub-run.json"
_RUN_SCHEMA: Final = "adapterhub/run/1"
_SPEED: Final = ("_runtime", "_per_second", "_time")


@parsed
class AddOnSave(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Adds every checkpoint of a training run to the library, as the next version of one adapter.

    The manifest of each version holds the step, the epoch and the newest figures that the trainer logged (`loss`,
    `eval_loss` and so on), which `adapt info` shows. A checkpoint whose weights the library has under this name already
    is left out, for example after a resume. A folder or a name that cannot be added is refused before the training
    starts; a later failure never stops the training but becomes a warning.

    `adapterhub-run.json` in the output folder names the versions of the run, for a resume.

    Works with `Trainer` of transformers, and with those of TRL, which derive from it. In a distributed run only the
    main process adds.
    """

    def __init__(
        self,
        name: str,
        *,
        library: Library | str | os.PathLike[str] | None = None,
        base: BaseLike | None = None,
        task: str | None = None,
        description: str = "",
        examples: Sequence[str] = (),
        license: str | None = None,  # noqa: A002 - as in `Library.add`
        prompt: PromptForm | None = None,
        version: str | None = None,
        bump: Bump = "patch",
        prune: bool = False,
    ) -> None:
        """Prepare the callback; `library` and the facts about the adapter are as for `Library.add`.

        Args:
            name: name of the adapter, such as `legal-qa` or `acme/legal-qa`.
            library: a `Library` or its folder; default: the library of the command line.
            base: the base that is trained on, also by its folder; default: the registered one that the adapter fits,
                if it fits exactly one.
            task: what it is for, such as `legal-qa`.
            description: one sentence for lists and search.
            examples: up to 16 prompts that show what the adapter is for.
            license: an SPDX expression.
            prompt: how the adapter wants to be asked.
            version: of the first checkpoint; default: 1.0.0, or the next free version if the name exists.
            bump: what to raise for each further checkpoint.
            prune: also remove the versions of this run whose checkpoint folders the trainer has deleted, as it does
                under `save_total_limit`.

        Raises:
            SpecError: `name` or `version` is not valid.
            BaseNotFound: `base` is not registered, and no folder.
            UsageProblem: `bump`, or a fact about the adapter, is what `Library.add` refuses.
        """
        self._full_name = name
        self._namespace, has_namespace, self._name = name.rpartition("/")
        if has_namespace:
            parse_namespace(self._namespace)
        check_naming(bump, variant=False)
        check_description(
            Description(
                name=parse_name(self._name),
                version=parse_released(version or "1.0.0"),
                task=task,
                description=description,
                license=license,
                prompt=prompt,
                examples=tuple(examples),
            )
        )
        self.library = library if isinstance(library, Library) else Library(library) if library else Library.default()
        self.versions: dict[Path, Installed] = {}
        """The versions that this run added, before a resume too, by their checkpoint folders, oldest first."""
        self._record = (
            None if base is None else record_of(self.library, base)
        )  # refused before hours of training, not after
        self._bump: Bump = bump
        self._version = version
        self._prune = prune
        self._about: dict[str, Any] = {
            "base": base,
            "task": task,
            "description": description,
            "examples": examples,
            "license": license,
            "prompt": prompt,
        }

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 - the trainer's call
        **_: object,
    ) -> None:
        """Find the versions that the run added before a resume; a new run needs room for its first version.

        Raises:
            ReleaseExists: the library has other builds of that version.
        """
        if not state.is_world_process_zero:
            return
        if state.global_step:
            self.versions = self._added_before(Path(args.output_dir))
        elif self._version is not None and not self.versions:
            base = self._record.fingerprint if self._record else None
            there = self.library.namesakes(self._name, self._namespace or None, base)
            there.ensure_room(self._version, "the first checkpoint")

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 - the trainer's call
        **_: object,
    ) -> None:
        """Add the checkpoint that the trainer just wrote."""
        if not state.is_world_process_zero:
            return
        try:
            folder = _newest_folder(Path(args.output_dir), f"checkpoint-{state.global_step}")
            if folder is not None:
                self._add(folder, metrics_of(state))
            if self._prune:
                self._remove_deleted()
            self._write_run(Path(args.output_dir))
        except Exception as error:  # noqa: BLE001 - hours of training are worth more than a version
            _warn(f"did not add the checkpoint of step {state.global_step}", error)

    def _add(self, folder: Path, metrics: Mapping[str, Any]) -> None:
        if not (folder / CONFIG_FILE).exists():
            raise NotFound(f"`{folder}` has no {CONFIG_FILE}", hint="wrap the model with `peft.get_peft_model`")
        digest, _ = digest_of_file(folder / WEIGHTS_FILE)
        for build in self.library.installed():
            if build.full_name == self._full_name and build.manifest.digests.get(WEIGHTS_FILE) == digest:
                return
        added = self.library.add(
            folder,
            name=self._name,
            namespace=self._namespace or None,
            version=self._version if not self.versions else None,
            bump=None if self._version and not self.versions else self._bump,
            metrics=metrics,
            **self._about,
        )
        self.versions[folder] = added.build

    def _remove_deleted(self) -> None:
        gone = [folder for folder in self.versions if not folder.exists()]
        self.library.remove([self.versions[folder] for folder in gone])
        for folder in gone:
            del self.versions[folder]

    def _write_run(self, output: Path) -> None:
        versions = {str(folder.relative_to(output)): build.manifest.digest for folder, build in self.versions.items()}
        value = {"schema": _RUN_SCHEMA, "name": self._full_name, "versions": versions}
        write_durably(output / RUN_FILE, canonical_json(value))

    def _added_before(self, output: Path) -> dict[Path, Installed]:
        """Return the installed versions that the file of the run names; none without such a file of this adapter."""
        with contextlib.suppress(OSError, ValueError):
            value = read_json(output / RUN_FILE)
            if isinstance(value, dict) and (value.get("schema"), value.get("name")) == (_RUN_SCHEMA, self._full_name):
                builds = {b.manifest.digest: b for b in self.library.installed() if b.full_name == self._full_name}
                named = value["versions"] if isinstance(value.get("versions"), dict) else {}
                return {output / folder: builds[digest] for folder, digest in named.items() if digest in builds}
        return {}


@parsed
class PublishOnStep(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Publishes the adapter in memory every so many steps, as the next version of a stream.

    The manifest of each version holds the step, the epoch and the newest figures that the trainer logged. Whatever goes
    wrong ends no training: it becomes a warning, and so does a version that the gate of the stream refused. In a
    distributed run only the main process publishes. The last step of a training is published too.
    """

    def __init__(self, stream: LiveStream, *, every: Count = 1, sync: bool = False) -> None:
        """Prepare the callback.

        Args:
            stream: what `Library.live` returned.
            every: publish after each so many steps of the optimiser.
            sync: wait at each version until a power cut cannot take it back, as in `LiveStream.publish`.
        """
        self.stream = stream
        self.published: Published | None = None
        """The version that was published last."""
        self._every, self._sync = every, sync

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the trainer's call
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 - the trainer's call
        model: Any = None,
        **_: object,
    ) -> None:
        """Publish what the step made."""
        is_last = state.max_steps > 0 and state.global_step >= state.max_steps
        if state.is_world_process_zero and (state.global_step % self._every == 0 or is_last):
            try:
                self._publish(model, state)
            except Exception as error:  # noqa: BLE001 - hours of training are worth more than a version
                _warn(f"did not publish step {state.global_step}", error)

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the trainer's call
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 - the trainer's call
        **_: object,
    ) -> None:
        """Wait until all that was published is durable."""
        if state.is_world_process_zero:
            self.stream.close()

    def _publish(self, model: Any, state: TrainerState) -> None:
        self.published = self.stream.publish(model, step=state.global_step, metrics=metrics_of(state), sync=self._sync)
        step, version = state.global_step, self.published.version
        if self.published.refused is not None:
            _warn(f"published step {step} as {version}, which is not current", self.published.refused)
        if self.published.unsent is not None:
            _warn(f"did not send {version} of step {step} to the registry", self.published.unsent)


def _warn(what: str, error: object) -> None:
    hint = getattr(error, "hint", "")
    warnings.warn(f"adapterhub {what}: {error}" + (hint and f"; {hint}"), RuntimeWarning, stacklevel=3)


def _newest_folder(output: Path, name: str) -> Path | None:
    """`name` in the output folder, or in that of the newest trial of a hyperparameter search."""
    found = [path for path in (output / name, *output.glob(f"run-*/{name}")) if path.is_dir()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def metrics_of(state: TrainerState) -> dict[str, float | int | bool]:
    """Step, epoch and the newest finite figures of a run; without those about the speed of the machine.

    `best_so_far` marks what the trainer found better than all before it, so the last one so marked is the best.
    """
    logged = (pair for line in state.log_history for pair in line.items())
    found: dict[str, float | int | bool] = {
        name: value
        for name, value in logged
        if isinstance(value, int | float) and math.isfinite(value) and not name.endswith(_SPEED)
    }
    found |= {"step": state.global_step}
    if state.epoch is not None:
        found["epoch"] = round(state.epoch, 6)
    if state.best_global_step and state.best_global_step == state.global_step:
        found["best_so_far"] = True
    return found
