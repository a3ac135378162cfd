"""Which adapter a text is for, from Python: `library.route("Is this deposit too high?", base="base-7b")`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapterhub.api.opened import BaseLike, OpenedLibrary, SpecLike, base_of, spec_of
from adapterhub.core.arguments import Cosine, StrPath, parsed, path_of
from adapterhub.core.errors import AdapterNotFound, UsageProblem

if TYPE_CHECKING:
    from adapterhub.api.steps.routing import CheckedRoute, Routed


@parsed
class WithFinding(OpenedLibrary):
    """Which adapter a text is for."""

    def route(
        self,
        text: str | None = None,
        *,
        base: BaseLike | None = None,
        over: Sequence[SpecLike] = (),
        file: StrPath | None = None,
        output: StrPath | None = None,
        threshold: Cosine | None = None,
        accept_routing: bool = False,
        strict: bool = False,
    ) -> Routed | CheckedRoute:
        """Choose the adapter for a text by the example prompts of each, from its contract or otherwise its manifest.

        Without a text, measures how well texts tell the adapters apart: leaves out one prompt of each at a time and
        routes it.

        Args:
            text: what one would ask.
            base: route among adapters for this base.
            over: among these; default: the newest build of each name that has at least 8 example prompts.
            file: a routing file, instead of all that makes one.
            output: write a routing file for `adapt serve --route`.
            threshold: least cosine of a text with an adapter's prompts; default: what keeps 95 % of their own.
            accept_routing: write it although it confuses more than one text in ten.
            strict: refuse a text that is for none of the adapters.

        Returns:
            With a text `.name`, `.version` and `.digest`, None if the base should answer without an adapter;
            `.model`, a name for a server; `.cosine` and `.near`. Otherwise `.accuracy`, `.confused`, and `.adapters`
            with the prompts that are right or fall to the base; `ensure_good` refuses them where a server would.

        Raises:
            UsageProblem: an adapter has too few prompts, or neither or both of `base` and `file` are given.
            NotFound, Malformed: the file cannot be used, or the model that compares texts is not set up.
            BaseNotFound: the base is not known here.
            CouldNotTell: it confuses too many; nothing was written.
            AdapterNotFound: `strict`, and the text is for none of them.
        """
        from adapterhub.api.steps.routing import check_route, make_route, route_text, unrouted, write_route
        from adapterhub.formats.route import read_route

        on = base_of(base)
        if file is not None and (on or over or output or threshold is not None or accept_routing):
            raise UsageProblem(
                "`--file` reads a finished routing file; the options that make one exclude it",
                hint="drop `--file` to make a routing file, or the other options to read one",
            )
        if output is not None and text:
            raise UsageProblem("`-o` writes a routing file and routes no text; run `adapt route TEXT --file FILE` then")
        if strict and not text:
            raise UsageProblem("`--strict` is for TEXT", hint="such as `adapt route TEXT --file FILE --strict`")
        if file is not None:
            made = read_route(path_of(file))
        elif on is not None:
            specs = [spec_of(one) for one in over]
            made = make_route(self.session, on, specs, threshold=threshold, accept=accept_routing)
        else:
            raise UsageProblem("routing needs `--base` or `--file`", hint='`adapt route "TEXT" --base NAME`')
        if text is not None:
            routed = route_text(self, made, text)
            if strict and routed.name is None:
                raise AdapterNotFound(unrouted(text), hint="leave out `--strict` to let the base answer it")
            return routed
        result = check_route(made)
        if output is None:
            return result
        result.ensure_good("Nothing was written")
        return write_route(made, path_of(output), result)
