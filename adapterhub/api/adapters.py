"""The adapters of a library from Python: add, install, list, search, describe, upgrade, uninstall."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adapterhub.api.opened import (
    BaseLike,
    OpenedLibrary,
    SpecLike,
    base_of,
    paths_of,
    report_card,
    report_likeness,
    spec_of,
)
from adapterhub.core.arguments import Namespace, StrPath, Testing, parsed, path_of
from adapterhub.core.digests import Progress
from adapterhub.core.ranks import RankRange, Ranks
from adapterhub.core.specs import AdapterSpec
from adapterhub.library.intake.clashes import Bump, check_naming
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Added
from adapterhub.library.store.catalog import Installed
from adapterhub.trust.signing.policy import SignaturePolicy

if TYPE_CHECKING:
    from adapterhub.distribution.install import InstallPlan
    from adapterhub.formats.prompts.form import PromptForm
    from adapterhub.projects.places import SpecSources


@parsed
class WithAdapters(OpenedLibrary):
    """What comes in and goes out."""

    def add(
        self,
        folder: StrPath,
        description: Description | str = "",
        *,
        name: str | None = None,
        version: str | None = None,
        bump: Bump | None = None,
        variant: bool = False,
        task: str | None = None,
        examples: Sequence[str] = (),
        license: str | None = None,  # noqa: A002 - the option's name
        prompt: PromptForm | None = None,
        base: BaseLike | None = None,
        guess_base: bool = True,
        namespace: Namespace | None = None,
        metrics: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Added:
        """Take in what PEFT or another program wrote, after checking it.

        Args:
            folder: what PEFT's `save_pretrained` wrote; or a LoRA file or folder of diffusers, kohya, ComfyUI or MLX.
            description: one sentence for lists and search; or a whole `Description`, then without `name` and the rest.
            name: name of the adapter; default: the folder's, in lower case. A folder with an `adapterhub.json` is taken
                in as that describes it, if you give no name and describe nothing else.
            version: PEP 440 version; default: 1.0.0.
            bump: `patch`, `minor` or `major`: take the next free version where the name exists for this base.
            variant: add a build of another rank to a version that exists.
            task: what it is for, such as `legal-qa`.
            examples: up to 16 prompts that show what one asks it; searches look for words in them, too.
            license: an SPDX expression; default: the one that the folder's README names.
            prompt: how the adapter wants to be asked; default: what the folder says for certain, such as a Modelfile.
            base: the base it was trained on; default: the registered one that it fits, if it fits exactly one.
            guess_base: False leaves the base unknown, until `pin`, where none is given; also that of a folder trained
                from a local path.
            namespace: as in `acme/legal-qa`.
            metrics: figures of its training or evaluation, such as `{"eval_loss": 0.41}`; JSON values.
            progress: called with the bytes that were read since the last call.

        Returns:
            `.build` is the installed adapter, `.report` its checks; `.created` is False when it was there already.

        Raises:
            RefusedAdapter, AdapterNotFound: damaged or hostile files, NaN, no pairs, no folder; nothing was stored.
            BaseMismatch, BaseNotFound, Malformed: it does not fit `base`, which is not known here, or cannot be read.
            ReleaseExists: the name and version exist for this base with other bytes or at another rank.
            UsageProblem: no name can be made of the folder's, or arguments exclude each other.

        Example:
            >>> library.add("out/summarize", name="summarize", base="base-7b", task="summarize").build  # doctest: +SKIP
            <Adapter summarize 1.0.0 rank 4 for base-7b, 12.5 kB>
        """
        from adapterhub.api.steps import installing
        from adapterhub.library.intake.foreign import peft_folder

        check_naming(bump, variant=variant, version=version)
        folder, record, found = path_of(folder), self.record_of(base), None
        if not any((description, name, version, task, examples, license, namespace, bump, variant, prompt, metrics)):
            taken = installing.add_described(self.session, folder, base_of(base), progress=progress)
            if taken is not None:
                return taken
        with contextlib.ExitStack() as stack:
            if progress is None:
                progress = stack.enter_context(self.reports.progress(f"add {name or folder.name}", None))
            ready = stack.enter_context(peft_folder(self.store, folder, record, progress))
            if not isinstance(description, Description):
                found = installing.describe_folder(
                    self,
                    ready.folder,
                    name=name,
                    version=version,
                    record=record,
                    guess=guess_base,
                    prompt=prompt,
                    task=task,
                    description=description,
                    examples=examples,
                    license=license,
                    named_after=ready.named_after,
                    base_sha256=ready.header.base_sha256,
                )
                description, record = replace(found.about, metrics=metrics or {}), found.record
            added = super().add(
                ready.folder,
                ready.described(description),
                base=record,
                namespace=namespace,
                bump=bump,
                variant=variant,
                guess_base=guess_base,
                progress=progress,
            )
        for note in (*ready.notes, *(found.notes if found else ())) if added.created else ():
            self.reports.note(note)
        report_card(self.session, added)
        report_likeness(self.session, added)
        return added

    def plan_install(
        self,
        spec: SpecLike,
        *,
        base: BaseLike | None = None,
        rank: Ranks | None = None,
        places: StrPath | Iterable[StrPath] = (),
        allow_base_mismatch: bool = False,
        exclude_newer: str | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> InstallPlan:
        """What `install` does: `.release`, `.copy_bytes`, `.missing`. Arguments and errors are those of `install`."""
        from adapterhub.projects.places import SpecSources

        where = SpecSources(self.session, paths_of(places), remote=remote, token=token, offline=offline)
        bounds = RankRange.of(rank)
        return self._plan(
            spec, where, bounds, base=base, allow_base_mismatch=allow_base_mismatch, exclude_newer=exclude_newer
        )

    def _plan(
        self,
        spec: SpecLike,
        where: SpecSources,
        bounds: RankRange,
        *,
        base: BaseLike | None,
        allow_base_mismatch: bool,
        exclude_newer: str | None,
    ) -> InstallPlan:
        from adapterhub.api.steps import installing
        from adapterhub.projects.places import objection_from, project_base

        return installing.plan_one(
            self.session,
            spec_of(spec),
            where,
            base=base_of(base) or project_base(self.session),
            base_is_typed=base is not None,
            bounds=bounds,
            allow_base_mismatch=allow_base_mismatch,
            objection=objection_from(self.session, exclude_newer),
        )

    def install(
        self,
        spec: SpecLike,
        *,
        base: BaseLike | None = None,
        rank: Ranks | None = None,
        places: StrPath | Iterable[StrPath] = (),
        allow_base_mismatch: bool = False,
        accept_repository: str = "",
        exclude_newer: str | None = None,
        test: Testing | None = None,
        signatures: SignaturePolicy | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Installed:
        """Install an adapter that fits a base, from `places`, then from the servers that have its namespace.

        Args:
            spec: such as `acme/legal-qa@base-7b>=1.2,<2`.
            base: the base, where the spec names none.
            rank: this rank, or one in a range: `8`, `"4-16"`, `"4-"`, `"-16"`.
            places: libraries, directories of published builds or PEFT folders to look in, as `--from` names them.
            allow_base_mismatch: take a build for other weights of the same shapes; recorded.
            accept_repository: a repository that may supply it though its name came from another.
            exclude_newer: take no release newer than a day (`2026-01-31`), a time or an age (`7d`).
            test: `keep` it only if it answers as its contract records on your base, or only `warn`.
            signatures: `require`, `warn` or `off` for this call.
            remote: ask only this server, a remote's name or a URL.
            token: access token for it.
            offline: open no connection.

        Raises:
            AdapterNotFound, BaseNotFound, NotFound, Malformed: no place has it; no such base, place or remote.
            NoCompatibleRelease: releases exist, none fits; `.refusals` holds a reason for each.
            SignatureRefused, NamespaceBound: a policy forbids it; nothing was fetched.
            DigestMismatch, RemoteUnreachable: it could not be fetched whole; nothing was installed.
            BehaviourChanged, CouldNotTell: it does not pass its test; nothing was installed.
        """
        from adapterhub.api.steps import installing
        from adapterhub.api.steps.contracts.gating import contract_gate
        from adapterhub.projects.places import SpecSources

        where = SpecSources(self.session, paths_of(places), remote=remote, token=token, offline=offline)
        bounds = RankRange.of(rank)
        with self.accepting([accept_repository]):
            plan = self._plan(
                spec, where, bounds, base=base, allow_base_mismatch=allow_base_mismatch, exclude_newer=exclude_newer
            )
        name = plan.release.full_name
        gate = contract_gate(self, test, bars=self.reports, out=self.reports)
        (added,) = installing.install_all(
            self.session, [plan], where, signatures, bars=self.reports, what=name, gate=gate
        )
        build = added.build if added else plan.present
        assert build is not None  # an install that was not refused
        return build

    def uninstall(self, *specs: SpecLike, all_versions: bool = False) -> Sequence[Installed]:
        """Remove installed adapters, and return them; their bytes stay in the store until `gc`.

        Raises:
            AdapterNotFound: one is not installed; none was removed.
            AmbiguousSpec: a spec fits several ranks of one version; its choices name each. None was removed.
            StoreLocked: a process uses one; none was removed.
        """
        from adapterhub.api.steps.finding import installed_builds, several_fit

        builds: list[Installed] = []
        for spec in map(spec_of, specs):
            found = installed_builds(self, spec, all_versions=all_versions)
            if len(found) > 1 and not all_versions:
                raise several_fit(spec, found, hint="name one of them, or pass them all")
            builds += found
        super().remove(builds)
        return builds

    def remove(self, builds: SpecLike | Iterable[SpecLike]) -> None:
        """Remove one adapter or several, as `uninstall` does."""
        self.uninstall(*([builds] if isinstance(builds, str | AdapterSpec | Installed) else builds))
