"""Look at adapters from Python: describe, verify, audit, compare their files, find out what something is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.api.opened import BaseLike, OpenedLibrary, SpecLike, base_of, paths_of, spec_of, text_of
from adapterhub.core.arguments import By, Cosine, StrPath, Top, parsed, path_of
from adapterhub.core.errors import AdapterNotFound, BaseNotFound, NoCompatibleRelease, RemoteUnreachable, UsageProblem
from adapterhub.core.extras import extra_named
from adapterhub.core.ranks import RankRange, Ranks
from adapterhub.library.store.catalog import AdapterLike, Installed
from adapterhub.trust.signing.policy import SignaturePolicy

if TYPE_CHECKING:
    from adapterhub.api.describing import Shown, ShownThere
    from adapterhub.api.steps.trying import Tried
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.distribution.hub import AlikeThere
    from adapterhub.library.find.likeness import Likeness, LikenessGroups
    from adapterhub.library.identify import Identity, LoraFiles
    from adapterhub.library.upkeep.lineage import Lineage, Tree
    from adapterhub.projects.session import Session
    from adapterhub.projects.tree import Holders, Needs, ProjectTree


@parsed
class WithInspection(OpenedLibrary):
    """Everything that looks at adapters and changes nothing."""

    def sbom(self, *specs: SpecLike, locked: bool = False) -> Mapping[str, Any]:
        """What installed adapters are made of, every one without `specs`, as a CycloneDX 1.6 document.

        With `locked`, what the project of the working directory locks.

        Raises:
            AdapterNotFound, NoCompatibleRelease: nothing installed answers to one of them.
            NotFound: there is no project, or no lock file.
        """
        from adapterhub.api.describing import bill_of_adapters, bill_of_lock

        if locked:
            if specs:
                raise UsageProblem("`--locked` lists what the project locks; leave out the adapters")
            return bill_of_lock(self.session, self.session.need_project())
        return bill_of_adapters(self.session, [str(spec_of(spec)) for spec in specs])

    def identify(self, path: StrPath) -> Identity:
        """Find out what a file or folder is; each of `.matches` is `proven`, `likely` or `possible`.

        Raises:
            AdapterNotFound: there is no such file or folder.
        """
        from adapterhub.library.identify import identify

        with self.reports.progress("identify", None) as progress:
            return identify(self, path_of(path), progress)

    def identify_files(self, *paths: StrPath) -> LoraFiles:
        """What each of many LoRA files is, from its header: program, family, rank, triggers, duplicates.

        Args:
            paths: files, and folders with files at any depth.

        Returns:
            `.files` has one row each; `.problem` of a row is why `add` would refuse it.

        Raises:
            CouldNotTell: a folder holds too many files.
        """
        from adapterhub.library.identify import identify_files

        with self.reports.progress("identify", None, unit="files") as progress:
            return identify_files(self, paths_of(paths), progress)

    @extra_named("`Library.try_adapters`")
    def try_adapters(
        self,
        *text: str,
        base: BaseLike | None = None,
        examples: StrPath,
        top: Top | None = None,
        task: str = "",
        rank: Ranks | None = None,
        method: str = "",
        license: str = "",  # noqa: A002 - the field's own word
        signed: bool = False,
        tested: bool = False,
        all_words: bool = False,
        by: By = "auto",
        far: bool = False,
        remote: str | None = None,
        token: str | None = None,
        signatures: SignaturePolicy | None = None,
        agree: Callable[[int, int], None] | None = None,
    ) -> Tried:
        """Search, then try the best on a base and order them by their measured loss. Nothing is merged or installed.

        `text` and the options that `search` has choose among the adapters for `base`; `examples` is a file of at most
        1 MiB and 100 lines, `{"prompt": …, "answer": …}` each. At most `top` are tried, 8 by default and 32 at most.
        With `remote`, builds are fetched for the trial alone, by the policy `signatures`; before that, `agree` is
        called with their number and bytes, and may raise. By default more than 200 MB are refused.

        Returns:
            `.results`, best first, each with `.tried.loss` in nats a token and `.tried.share` of the gap to the base;
            `.base_loss`; `.best`, None where no build beats the base alone; `.left_out` with reasons.

        Raises:
            NotFound, Malformed: the examples cannot be read.
            BaseNotFound: the base is unknown, or its weights are not on this machine.
            CouldNotTell: there are candidates, and not one can be tried.
            NotAllowed: the trial would fetch too much.
            RemoteUnreachable: the server does not answer.
        """
        from adapterhub.api.steps.trying import DEFAULT_TOP, search_candidates, try_candidates

        on, words, most = base_of(base), " ".join(text), top or DEFAULT_TOP
        if on is None:
            raise UsageProblem("`--try` needs a base to try on", hint="add `--base NAME`; `adapt base list` shows them")
        query = {"text": words, "task": task, "ranks": RankRange.of(rank), "method": method, "license": license}
        query |= {"signed": signed, "tested": tested, "all_words": all_words, "by": by}
        found, left_out = search_candidates(
            self.session, on, most, query, far=far, remote=remote, token=token, signatures=signatures
        )
        return try_candidates(
            self.session, words, on, found, path_of(examples), left_out=left_out, agree=agree, bars=self.reports
        )

    def similar(
        self,
        adapter: AdapterLike | None = None,
        *,
        above: Cosine | None = None,
        parents: bool = True,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Likeness | LikenessGroups | AlikeThere:
        """The installed adapters whose update is like that of one, and those that it is a sum of.

        Args:
            adapter: an installed adapter (a spec or a build), or a folder; None puts all installed ones into groups.
            above: the least cosine to list, from 0 to 1; default: 0.5, in groups 0.99, and on a server 0.9.
            parents: also look for the adapters that it is a weighted sum of.
            remote: ask this registry, which estimates cosines, what is like the release `adapter` there.
            token: access token for it.
            offline: refuse to open a connection.

        Returns:
            `.similar`, each with `.cosine` and `.kind`; `.parents`, each with `.weight`; `.unexplained`. For None,
            `.groups`.

        Raises:
            MalformedConfig, MalformedTensorFile: the files of a folder cannot be read.
            AdapterNotFound, NoCompatibleRelease: nothing answers to the spec.
            NotFound: no remote has that name.
            UnsupportedAdapter: it has no update to compare: another method, or zeros.
            UsageProblem: the server does not compare updates, or `above` is out of bounds there.
        """
        from adapterhub.api.steps.finding import build_or_folder

        if remote is not None:
            if adapter is None or not isinstance(adapter, str | Installed):
                raise UsageProblem(
                    "a server compares its own adapters", hint="name one of them, or leave out `--remote`"
                )
            hub = self.session.named_hub(remote, token=token, offline=offline)
            return hub.similar(spec_of(adapter), 0.9 if above is None else above)
        with extra_named("`similar`", "find"):
            from adapterhub.library.find.likeness import similar_groups, similar_to

            with self.reports.progress("sketch", None, unit="adapters") as progress:
                if adapter is None:
                    return similar_groups(self, above=0.99 if above is None else above, progress=progress)
                subject = adapter if isinstance(adapter, Installed) else build_or_folder(self.session, text_of(adapter))
                least = 0.5 if above is None else above
                return similar_to(self, subject, above=least, with_parents=parents, progress=progress)

    def info(
        self,
        spec: SpecLike,
        *,
        base: BaseLike | None = None,
        rank: Ranks | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Shown | ShownThere:
        """Everything about one adapter; looked up on a server if it is not installed.

        Returns:
            `.manifest`, `.signature`, `.judged`, the verdict on its base, and more; `to_json()` has it all.

        Raises:
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            NotFound: no remote has that name.
            AdapterNotFound, NoCompatibleRelease: neither here nor on a server.
            RemoteUnreachable: it is not here, and `offline` forbids to ask.
        """
        from adapterhub.api.describing import shown_build, shown_on_server
        from adapterhub.api.searching import find_build

        bounds, session = RankRange.of(rank), self.session
        asked, base_spec = spec_of(spec), base_of(base)
        not_here: AdapterNotFound | BaseNotFound | NoCompatibleRelease | None = None
        if remote is None:
            try:
                build = find_build(session, asked, bounds, to="show", base=base_spec)
                return shown_build(session, session.library, build, asked, base_spec, offline=offline)
            except (AdapterNotFound, BaseNotFound, NoCompatibleRelease) as error:  # a server may have such an alias
                not_here = error
        if offline:
            raise RemoteUnreachable(
                "`--offline` forbids asking a server"
                if not_here is None
                else f"`{asked.full_name}` is not installed, and `--offline` forbids asking a server",
                hint=f"`adapt info {asked.name}` asks the library" if not_here is None else not_here.hint,
            )
        return shown_on_server(session, asked, base_spec, bounds, remote=remote, token=token, not_here=not_here)

    def recipe(self, spec: SpecLike, *, base: BaseLike | None = None, rank: Ranks | None = None) -> str:
        """How an installed adapter was merged, as TOML for `merge(recipe=…)`.

        Raises:
            AdapterNotFound, NoCompatibleRelease, BaseNotFound: it is not installed.
            Malformed: the record or folder of the base cannot be read.
            NotFound: it is no merge.
        """
        from adapterhub.api.searching import find_build
        from adapterhub.weights.recipes.toml import recipe_of, to_toml

        build = find_build(self.session, spec_of(spec), RankRange.of(rank), to="show", base=base_of(base))
        return to_toml(recipe_of(build.manifest))

    def tree(
        self, *specs: SpecLike, invert: bool = False, holders: bool = False
    ) -> Tree | ProjectTree | Holders | Needs:
        """What installed adapters were merged from, as nodes with `.parents`; `print` draws it.

        Args:
            specs: only these; default: every one that no other was made from.
            invert: who needs `specs`: projects, aliases, merges and processes, as `.uses` of each of `.builds`.
            holders: what each project and process holds, and what nothing holds.

        Raises:
            AdapterNotFound: one of `specs` is not installed.
            UsageProblem: `invert` without an adapter, or `holders` with one.
        """
        from adapterhub.api.steps.finding import lineage_of
        from adapterhub.library.upkeep.lineage import Tree

        lineage, wanted = lineage_of(self.session), [spec_of(spec) for spec in specs]
        if invert or holders:
            return users(self.session, lineage, wanted, invert=invert)
        rows = [row for spec in wanted for row in lineage.named(spec)] if specs else lineage.roots()
        return Tree.of([lineage.node_of(row) for row in rows])


def users(session: Session, lineage: Lineage, specs: Sequence[AdapterSpec], *, invert: bool) -> Holders | Needs:
    """Who needs the adapters, or with `invert` false who needs what of all."""
    from adapterhub.api.steps.finding import meant_by
    from adapterhub.projects.tree import Holders, Needs, Uses

    uses = Uses(session.root, lineage)
    if not invert:
        if specs:
            hint = "`adapt tree --invert NAME` shows who needs one adapter"
            raise UsageProblem("`--holders` shows every adapter; give no names", hint=hint)
        return Holders.of(uses, lineage)
    if not specs:
        hint = "`adapt tree --holders` shows what needs which"
        raise UsageProblem("`--invert` shows who needs an adapter; name one", hint=hint)
    return Needs.of(uses, [build for spec in specs for build in meant_by(session, lineage, spec)])
