"""Which adapter a text is for, from Python: `library.route("Is this deposit too high?", base="base-7b")`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.api.opened import BaseLike, OpenedLibrary, SpecLike, base_of, spec_of
from adapterhub.core.arguments import Cosine, StrPath, parsed, path_of
from adapterhub.core.errors import UsageProblem

if TYPE_CHECKING:
    from adapterhub.api.steps.find.routing import CheckedRoute, Routed
    from adapterhub.formats.route import Route


@parsed
class WithFinding(OpenedLibrary):
    """Which adapter a text is for."""

    def route(
        self, text: str, *, base: BaseLike | None = None, over: Sequence[SpecLike] = (), file: StrPath | None = None
    ) -> Routed:
        """Which adapter a text is for, by the example prompts of each: those of its contract, else of its manifest.

        Args:
            text: what one would ask.
            base: route among adapters for this base.
            over: among these; default: the newest build of each name that has at least 8 example prompts.
            file: a routing file, instead of `base` and `over`.

        Returns:
            `.name`, `.version` and `.digest`, None where the base alone should answer; `.model`, a name for a server;
            `.cosine` and `.near`.

        Raises:
            UsageProblem: an adapter has too few prompts, or neither or both of `base` and `file` are given.
            NotFound, Malformed: the file cannot be used, or the model that compares texts is not set up.
        """
        from adapterhub.api.steps.find.routing import route_text

        return route_text(self, self._route(base, over, file), text)

    def make_route(
        self,
        output: StrPath,
        *,
        base: BaseLike,
        over: Sequence[SpecLike] = (),
        threshold: Cosine | None = None,
        accept: bool = False,
    ) -> CheckedRoute:
        """Write a routing file for `adapt serve --route`.

        Args:
            output: the file.
            base: the base of the adapters.
            over: as for `route`.
            threshold: least cosine of a text with an adapter's prompts; default: what keeps 95 % of their own.
            accept: write it although it confuses more than one text in ten.

        Returns:
            As `check_route`.

        Raises:
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            CouldNotTell: it confuses too many; nothing was written.
            UsageProblem: an adapter has too few prompts.
        """
        from adapterhub.api.steps.find.routing import check_route, ensure_good, make_route, write_route

        on = base_of(base)
        assert on is not None
        specs = [spec_of(one) for one in over]
        made = make_route(self.session, on, specs, threshold=threshold, accept=accept, bars=self.reports)
        result = check_route(made)
        ensure_good(result, "Nothing was written")
        return write_route(made, Path(output), result)

    def check_route(
        self, file: StrPath | None = None, *, base: BaseLike | None = None, over: Sequence[SpecLike] = ()
    ) -> CheckedRoute:
        """How well texts tell adapters apart: one prompt of each is left out at a time, and routed.

        Args:
            file: a routing file, instead of `base` and `over`, which are as for `route`.
            base: as for `route`.
            over: as for `route`.

        Returns:
            `.accuracy`, `.confused`, and `.adapters` with the prompts that are right or fall to the base.

        Raises:
            NotFound: there is no such file.
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
        """
        from adapterhub.api.steps.find.routing import check_route

        return check_route(self._route(base, over, file))

    def export_router(self, file: StrPath, output: StrPath, *, url: str = "http://127.0.0.1:8000") -> Path:
        """Write a routing file as a configuration of vLLM's semantic router. It holds the example prompts.

        Args:
            file: the routing file.
            output: the YAML file to write.
            url: where `adapt serve` answers.

        Returns:
            The path.

        Raises:
            NotFound: there is no such file.
            CouldNotTell: a build of the file is not installed here.
        """
        from adapterhub.api.steps.find.exporting import export_router
        from adapterhub.formats.route import read_route

        return export_router(self, read_route(path_of(file)), Path(output), url=url)

    def _route(self, base: BaseLike | None, over: Sequence[SpecLike], file: StrPath | None) -> Route:
        from adapterhub.api.steps.find.routing import make_route
        from adapterhub.formats.route import read_route

        on = base_of(base)
        if file is not None and on is None and not over:
            return read_route(path_of(file))
        if file is not None or on is None:
            raise UsageProblem("routing takes a routing file or a base")
        return make_route(self.session, on, [spec_of(one) for one in over], bars=self.reports)
