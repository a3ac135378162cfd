"""Look at adapters from Python: describe, verify, audit, compare their files, find out what something is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from adapterhub.api.arguments import refuse
from adapterhub.api.opened import BaseLike, OpenedLibrary, SpecLike, base_of, paths_of, spec_of, text_of
from adapterhub.core.arguments import Cosine, Precision, StrPath, parsed, path_of
from adapterhub.core.errors import AdapterNotFound, BaseNotFound, NoCompatibleRelease, RemoteUnreachable, UsageProblem
from adapterhub.core.extras import extra_named
from adapterhub.core.ranks import RankRange, Ranks
from adapterhub.library.store.catalog import AdapterLike, Installed

if TYPE_CHECKING:
    from adapterhub.api.describing import Shown, ShownThere
    from adapterhub.api.listed import Tried
    from adapterhub.core.specs import AdapterSpec, BaseSpec
    from adapterhub.distribution.hub import AlikeThere
    from adapterhub.formats.derived.comparison import Comparison
    from adapterhub.library.find.likeness import Likeness, LikenessGroups
    from adapterhub.library.identify import Identity, LoraFiles
    from adapterhub.library.upkeep.lineage import Lineage, Tree
    from adapterhub.projects.session import Session
    from adapterhub.projects.tree import Holders, Needs, ProjectTree
    from adapterhub.weights.compare.difference import Difference


@parsed
class WithInspection(OpenedLibrary):
    """Everything that looks at adapters and changes nothing."""

    def identify(self, *paths: StrPath) -> Identity | LoraFiles:
        """Find out what a file or folder is, or what each of many LoRA files is.

        Args:
            paths: a file, a folder of one adapter, or a hash of a file; or several files, and folders with files at any
                depth.

        Returns:
            Of one, each of `.matches` is `proven`, `likely` or `possible`. Of several, `.files` has one row each, read
            from its header: program, family, rank, triggers, duplicates; `.problem` of a row is why `add` would refuse
            it.

        Raises:
            AdapterNotFound: there is no such file or folder.
            CouldNotTell: a folder holds too many files.
        """
        from adapterhub.library.identify import holds_several, identify, identify_files

        places = paths_of(paths)
        if not places:
            raise UsageProblem("give a file or a folder")
        if len(places) > 1 or holds_several(places[0]):
            with self.reports.progress("identify", None, unit="files") as progress:
                return identify_files(self, places, progress)
        with self.reports.progress("identify", None) as progress:
            return identify(self, places[0], progress)

    @extra_named("`search --try`")
    def _try(
        self,
        base: BaseSpec | None,
        examples: Path,
        top: int | None,
        query: Mapping[str, Any],
        agree: Callable[[int, int], None] | None,
    ) -> Tried:
        """Try what `search` finds; see there."""
        from adapterhub.api.steps.trying import search_and_try

        return search_and_try(self.session, base, examples, top, query, agree=agree)

    @extra_named("`compare`")
    def compare(
        self,
        *adapters: AdapterLike,
        weights: Sequence[float] | None = None,
        base: BaseLike | None = None,
        dtype: Precision = "float32",
        plot: StrPath | None = None,
        diff: bool = False,
        above: Cosine | None = None,
        parents: bool = True,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Comparison | Difference | Likeness | LikenessGroups | AlikeThere:
        """Return how alike adapters are, module by module, and what their merge would be; nothing is merged.

        With `diff`, what is different between two: files, config, manifest, and the exact difference of their updates.
        An adapter that is not installed is read from a server; with `remote`, every spec is read from that server.
        One adapter is compared with the installed ones: which have a like update, and which it is a sum of. Without
        any, all installed ones are put into groups.

        Args:
            adapters: each a spec, a build or a folder.
            weights: of the merge, one for each adapter; default: equal shares that sum to 1.
            base: the base, where the specs name none.
            dtype: precision of the files that are predicted.
            plot: draw layers and modules to this .png, .svg or .pdf.
            diff: return the differences of two adapters.
            above: of one or none: the least cosine to list, from 0 to 1; default: 0.5, in groups 0.99, and on a server
                0.9.
            parents: of one: also look for the adapters that it is a weighted sum of.
            remote: the server that has them; without, the library is asked first. With one adapter, a registry
                estimates which of its releases are like that release.
            token: access token for it.
            offline: refuse to open a connection.

        Returns:
            `.pairs` with cosines and overlaps, `.modules`, `.forecast`, and `.obstacles` to a merge. With `diff`
            `.is_identical`, `.files`, `.config`, `.manifest`, and `.weights` with the figures. For one adapter
            `.similar`, each with `.cosine` and `.kind`; `.parents`, each with `.weight`; `.unexplained`. For none
            `.groups`.

        Raises:
            AdapterNotFound, NoCompatibleRelease: one is neither here nor on a server.
            MergeRefused, Malformed: they cannot be compared; every reason is listed.
            UnsupportedAdapter: the only one has no update to compare: another method, or zeros.
            UsageProblem, NotAllowed: these options do not go together, or the picture cannot be written.
        """
        if len(adapters) < 2 and not diff:
            refuse("these are for two adapters or more", weights=weights, base=base, plot=plot)
            one = adapters[0] if adapters else None
            return self._alike(one, above=above, parents=parents, remote=remote, token=token, offline=offline)
        refuse("this is for one adapter, which is compared with what is installed", above=above)
        from adapterhub.api.steps.combining import compared, ingredient_of, sides_of, with_shares
        from adapterhub.distribution.choosing import find_installed, look_up
        from adapterhub.weights.compare.difference import differ
        from adapterhub.weights.compare.heatmap import check_picture, write_picture

        if diff and len(adapters) != 2:
            hint = "see the examples of `adapt compare --help`"
            raise UsageProblem("give two adapters to compare with `--diff`", hint=hint)
        pairs = with_shares(adapters, weights)
        if diff:
            refuse("`--diff` merges and draws nothing", weights=weights, plot=plot)
        if plot is not None:
            check_picture(path_of(plot))
        asked = sides_of(
            self.session,
            self.named,
            [text_of(what) for what, _ in pairs],
            base_of(base),
            find=look_up if diff else find_installed,
            remote=remote,
            token=token,
            offline=offline,
        )
        with asked as sides:
            if diff:
                with self.reports.progress("compare", None, unit="modules") as progress:
                    return differ(sides[0], sides[1], progress, judge=self.session.library.bases.judged)
            inputs = [ingredient_of(side, weight) for side, (_, weight) in zip(sides, pairs, strict=True)]
            found = compared(self.session, inputs, dtype)
        if plot is None:
            return found
        write_picture(found, path_of(plot))
        return replace(found, plot=path_of(plot))

    def _alike(
        self,
        adapter: AdapterLike | None,
        *,
        above: Cosine | None,
        parents: bool,
        remote: str | None,
        token: str | None,
        offline: bool,
    ) -> Likeness | LikenessGroups | AlikeThere:
        """Return the builds like one adapter here, or on a server; for None, the groups of installed builds."""
        from adapterhub.api.steps.finding import build_or_folder

        if remote is not None:
            if adapter is None or not isinstance(adapter, str | Installed):
                hint = "name one of them, or leave out `--remote`"
                raise UsageProblem("a server compares its own adapters", hint=hint)
            hub = self.session.named_hub(remote, token=token, offline=offline)
            return hub.similar(spec_of(adapter), 0.9 if above is None else above)
        with extra_named("`compare` of one adapter", "find"):
            from adapterhub.library.find.likeness import similar_groups, similar_to

            with self.reports.progress("sketch", None, unit="adapters") as progress:
                if adapter is None:
                    return similar_groups(self, above=0.99 if above is None else above, progress=progress)
                subject = adapter if isinstance(adapter, Installed) else build_or_folder(self.session, text_of(adapter))
                least = 0.5 if above is None else above
                return similar_to(self, subject, above=least, with_parents=parents, progress=progress)

    @overload
    def info(
        self,
        spec: SpecLike,
        *,
        only: None = ...,
        base: BaseLike | None = ...,
        rank: Ranks | None = ...,
        remote: str | None = ...,
        token: str | None = ...,
        offline: bool = ...,
    ) -> Shown | ShownThere: ...
    @overload
    def info(
        self, spec: SpecLike, *, only: Literal["path"], base: BaseLike | None = ..., rank: Ranks | None = ...
    ) -> Path: ...
    @overload
    def info(
        self, spec: SpecLike, *, only: Literal["recipe"], base: BaseLike | None = ..., rank: Ranks | None = ...
    ) -> str: ...
    def info(
        self,
        spec: SpecLike,
        *,
        only: Literal["path", "recipe"] | None = None,
        base: BaseLike | None = None,
        rank: Ranks | None = None,
        remote: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> Shown | ShownThere | Path | str:
        """Everything about one adapter; looked up on a server if it is not installed.

        Args:
            spec: the adapter.
            only: of an installed adapter, the `path` of its plain PEFT folder, for any tool that reads PEFT; or the
                `recipe` by which it was merged, as TOML for `merge(recipe=…)`. No server is asked.
            base: the base, where the spec names none.
            rank: the ranks that may be.
            remote: ask this server instead.
            token: access token for it.
            offline: refuse to open a connection.

        Returns:
            `.manifest`, `.signature`, `.judged`, the verdict on its base, and more; `to_json()` has it all.

        Raises:
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            NotFound: no remote has that name.
            AdapterNotFound, NoCompatibleRelease: neither here nor on a server.
            SignatureRefused, NamespaceBound: its path is wanted, and it may not be used.
            RemoteUnreachable: it is not here, and `offline` forbids to ask.
        """
        from adapterhub.api.describing import shown_build, shown_on_server
        from adapterhub.api.searching import find_build

        bounds, session = RankRange.of(rank), self.session
        asked, base_spec = spec_of(spec), base_of(base)
        if only is not None and remote is not None:
            raise UsageProblem(f"`--{only}` is of an installed adapter; leave out `--remote`")
        if only == "path":
            return find_build(session, asked, bounds, to="use", base=base_spec).folder
        if only == "recipe":
            from adapterhub.weights.recipes.toml import recipe_of, to_toml

            return to_toml(recipe_of(find_build(session, asked, bounds, to="show", base=base_spec).manifest))
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

    def tree(
        self, *specs: SpecLike, invert: bool = False, holders: bool = False
    ) -> Tree | ProjectTree | Holders | Needs:
        """Return the parents of installed merges as nodes with `.parents`; `print` draws them.

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
    """Return who needs the adapters, or with `invert` false who needs what of all."""
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
