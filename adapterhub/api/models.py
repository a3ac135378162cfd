"""Adapters and models from Python: fuse, export, tune weights, attach, answer a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from adapterhub.api.arguments import refuse
from adapterhub.api.opened import (
    Adapters,
    BaseLike,
    OpenedLibrary,
    base_of,
    text_of,
)
from adapterhub.core.arguments import (
    Count,
    ExportFormat,
    Guidance,
    LoadIn,
    LoadPrecision,
    ModelLike,
    Precision,
    Seed,
    Share,
    Steps,
    StrPath,
    Temperature,
    parsed,
    path_of,
)
from adapterhub.core.errors import UsageProblem
from adapterhub.core.extras import extra_named, require
from adapterhub.library.store.catalog import AdapterLike

if TYPE_CHECKING:
    import torch

    from adapterhub.api.describing import Bill
    from adapterhub.api.installing import Requirements
    from adapterhub.api.steps.exporting import ExportedRouter
    from adapterhub.formats.answers import BatchAnswers, ComparedAnswers, DrawnImage
    from adapterhub.inference.bank import AdapterBank
    from adapterhub.inference.export import Exported
    from adapterhub.inference.loader import Attached
    from adapterhub.inference.playground import Playground, PlaygroundBounds
    from adapterhub.weights.fuse import Fused

_AS_GGUF: Final = frozenset({"gguf", "ollama"})


@parsed
class WithModels(OpenedLibrary):
    """Everything that puts adapters into a model, on a model, or into another program's files."""

    # ------------------------------------------------------------ into a model, or another program's files
    @extra_named("`fuse`")
    def fuse(
        self,
        adapters: Adapters,
        *,
        output: StrPath,
        weights: Sequence[float] | None = None,
        base: BaseLike | None = None,
        dtype: Precision | None = None,
        allow_base_mismatch: bool = False,
        test: bool = False,
    ) -> Fused:
        """Write a base with adapters added as a model of its own in the new folder `output`. No model is loaded.

        Args:
            adapters: one, several, or a mapping to weights.
            output: the new model's folder.
            weights: one for each adapter of a sequence; default: equal shares that sum to 1.
            base: the base, where the specs name none.
            dtype: precision of the new model; default: that of the base, tensor by tensor.
            allow_base_mismatch: fuse into other weights of the same shapes.
            test: load the new model, and keep it only if it passes the adapter's contract; of several adapters, their
                `never` and `leave_alone` lines.

        Returns:
            `.relative_error` is what rounding lost of the update; `.out_folder`, `.tensors`, `.tests`, `.warnings`.

        Raises:
            AdapterNotFound, NoCompatibleRelease: an adapter is not here, or none fits.
            RefusedAdapter, DigestMismatch: its files are not sound.
            Conflict: the folder exists.
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            BehaviourChanged, CouldNotTell: it does not pass its test; nothing was written.
        """
        from adapterhub.api.steps.combining import with_shares
        from adapterhub.api.steps.contracts.gating import MergeTest
        from adapterhub.weights.fuse import prepare

        library, pairs = self.named, with_shares(adapters, weights)
        with self.reports.progress("fingerprint", None) as reading:
            fusion = prepare(
                [what for what, _ in pairs],
                path_of(output),
                library=library,
                base=base_of(base),
                weights=[weight for _, weight in pairs],
                dtype=dtype,
                allow_base_mismatch=allow_base_mismatch,
                reading=reading,
            )
        with fusion, self.reports.progress("fuse", fusion.size_bytes) as progress:
            for warning in fusion.warnings:
                self.reports.warn(warning)
            asked = MergeTest(library, self.session, is_model=True) if test else None
            fused = fusion.write(progress=progress, test=asked)
            return replace(fused, tests=tuple(asked.results)) if asked is not None else fused

    @extra_named("`export`")
    def export(
        self,
        adapter: AdapterLike | tuple[AdapterLike, ...] | None = None,
        output: StrPath | None = None,
        *,
        format: ExportFormat | Literal["semantic-router", "cyclonedx"] | None = None,  # noqa: A002 - the option's name
        base: BaseLike | None = None,
        dtype: Precision | None = None,
        gguf: str | None = None,
        allow_base_mismatch: bool = False,
        test: bool = False,
        llama_server: str | None = None,
        groups: Sequence[str] = (),
        all_groups: bool = False,
        library: bool = False,
        url: str | None = None,
    ) -> Exported | ExportedRouter | Requirements | Bill:
        """Write an adapter for another program, meaning exactly what PEFT means by it; or a plain list of adapters.

        Args:
            adapter: a spec, a build or a folder; for `semantic-router`, a routing file; for `cyclonedx`, one spec or
                several. None makes the list: the locked adapters of the project that the library follows, otherwise
                the installed ones; so it is for `cyclonedx`.
            output: a new file for gguf, comfyui, diffusers, kohya, semantic-router, cyclonedx and the list, a new
                folder for the other formats.
            format: the program or the form, such as `gguf`, `vllm` or `peft`.
            base: the base, where the spec names none.
            dtype: precision of the written weights; default: exact.
            gguf: the base as a GGUF file: for gguf with `test`, the base for llama.cpp's server; for ollama, this file
                or Ollama's name of the base.
            allow_base_mismatch: take a base of the same shapes with other weights.
            test: for gguf, merged, peft and vllm: load it again, and keep it only if it passes its contract.
            llama_server: that program; default: `llama-server` in PATH.
            groups: of the list: also these optional groups of the project.
            all_groups: of the list: every group.
            library: list the library, also in a project.
            url: for semantic-router: where `adapt serve` answers; default: `http://127.0.0.1:8000`.

        Returns:
            `.paths`, `.size_bytes`, `.flags` that the program needs, `.notes`, `.tests`; of the list `.requirements`,
            of a router `.path`; of `cyclonedx` `.document`, what the adapters are made of.

        Raises:
            AdapterNotFound, NoCompatibleRelease: an adapter is not here, or none fits.
            RefusedAdapter, DigestMismatch: its files are not sound.
            Conflict: the output exists.
            NotAllowed: the output would lie in a library's own folders, or where you may not write.
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            BehaviourChanged, CouldNotTell: it does not pass its test; nothing was written.
            UnsupportedAdapter: the format cannot carry it; nothing was written.
        """
        from adapterhub.api.describing import bill_of_adapters, bill_of_lock
        from adapterhub.api.installing import Requirements
        from adapterhub.api.steps.exporting import export_router, listed

        place = None if output is None else path_of(output)
        how = {"base": base, "dtype": dtype, "gguf": gguf, "allow_base_mismatch": allow_base_mismatch, "test": test}
        how |= {"llama_server": llama_server}
        if format == "cyclonedx":
            refuse("a bill of materials holds no weights", group=groups, all_groups=all_groups, url=url, **how)
            if adapter is None and not library and self.session.project_folder is not None:
                bill = bill_of_lock(self.session, self.session.need_project())
            else:
                refuse("`--library` chooses all; name no adapter", library=library and adapter is not None)
                several = adapter if isinstance(adapter, tuple) else () if adapter is None else (adapter,)
                bill = bill_of_adapters(self.session, [text_of(one) for one in several])
            return bill if place is None else bill.written(place)
        if isinstance(adapter, tuple):
            raise UsageProblem(
                "one adapter is exported at a time; only `--format cyclonedx` takes several",
                hint="run the command once per adapter",
            )
        if adapter is None:
            refuse("a list of adapters has no format", format=format, url=url, **how)
            made = Requirements.of(listed(self, groups=groups, all_groups=all_groups, whole_library=library))
            return made if place is None else made.written(place)
        refuse("these choose from a list; name no adapter", group=groups, all_groups=all_groups, library=library)
        if format is None or place is None:
            hint = "`adapt export NAME --format gguf -o NAME.gguf`; without a name, it prints a plain list"
            raise UsageProblem("an export needs an adapter, `--format` and `-o`", hint=hint)
        if format == "semantic-router":
            refuse("a routing file holds no weights", **how)
            return export_router(self, path_of(text_of(adapter)), place, url=url)
        refuse("`--url` is for `--format semantic-router`", url=url)
        require("export" if format in _AS_GGUF else "weights", f"`--format {format}`")
        from adapterhub.api.steps.contracts.exporting import export_test
        from adapterhub.inference.export import export

        if ((gguf is not None and format != "ollama") or llama_server) and not test:
            raise UsageProblem("`--gguf` and `--llama-server` are for `--test`", hint="add `--test`, or drop them")
        asked, known, spec = None, self.named, base_of(base)
        if test:
            file = None if gguf is None else path_of(gguf)
            asked = export_test(known, format, on=spec, gguf=file, llama_server=llama_server, session=self.session)
        with self.reports.steps(f"export {format}", unit="bytes" if format == "merged" else "modules") as progress:
            exported = export(
                adapter,
                place,
                form=format,
                library=known,
                base=spec,
                dtype=dtype,
                ollama_base=gguf if format == "ollama" else None,
                allow_base_mismatch=allow_base_mismatch,
                test=asked,
                progress=progress,
            )
        return replace(exported, format=format, tests=tuple(asked.results) if asked is not None else None)

    # ------------------------------------------------------------ on a model
    @extra_named("`Library.attach`")
    def attach(
        self,
        model: ModelLike,
        adapter: Adapters,
        *,
        base: BaseLike | None = None,
        weights: Sequence[float] | None = None,
        allow_base_mismatch: bool = False,
    ) -> Attached:
        """Put adapters of this library on `model`; arguments, result and errors are those of `adapterhub.attach`."""
        from adapterhub.inference.loader import attach

        return attach(
            model,
            adapter,
            library=self,
            base=base_of(base),
            weights=weights,
            allow_base_mismatch=allow_base_mismatch,
        )

    @extra_named("`Library.bank`")
    def bank(
        self,
        model: ModelLike,
        *,
        base: BaseLike | None = None,
        max_resident: Count | None = None,
        max_resident_bytes: Count | None = None,
        dtype: torch.dtype | str | None = None,
        allow_base_mismatch: bool = False,
    ) -> AdapterBank:
        """Return an `AdapterBank` on `model` that takes its adapters from this library."""
        from adapterhub.inference.bank import AdapterBank

        return AdapterBank(
            model,
            library=self,
            base=base_of(base),
            max_resident=max_resident,
            max_resident_bytes=max_resident_bytes,
            dtype=dtype,
            allow_base_mismatch=allow_base_mismatch,
        )

    @extra_named("`Library.playground`")
    def playground(
        self,
        base: BaseLike | None = None,
        *,
        bounds: PlaygroundBounds | None = None,
        dtype: LoadPrecision = "auto",
        load_in: LoadIn | None = None,
        allow_base_mismatch: bool = False,
    ) -> Playground:
        """Return a base on which up to four choices of adapters answer a prompt side by side, token by token.

        The first question loads the base; it stays in memory, once for all adapters, until `close` or the end of a
        `with` block. A choice is a mapping from adapters to weights, so that you can try a merge before making it; an
        empty one is the plain base: `playground.ask([{"a": 0.7, "b": 0.3}, {"a": 1.0}, {}], "The parties")`.

        Args:
            base: the base; default: the only one of the library.
            bounds: how much one question may ask for.
            dtype: precision of the base in memory.
            load_in: `4bit` or `8bit` packs the base's linear layers.
            allow_base_mismatch: answer on other weights of the same shapes.

        Returns:
            A `Playground`; `ask` gives an `Answering` to iterate over, which yields `Begun`, `Piece` and `Ended`.

        Raises:
            Malformed: its folder cannot be read.
            BaseNotFound: the base is unknown, or its weights are not on this machine.
        """
        from adapterhub.api.steps.finding import find_base
        from adapterhub.inference.answering import Loading
        from adapterhub.inference.playground import Playground

        loading = Loading(base=None, dtype=dtype, load_in=load_in, allow_base_mismatch=allow_base_mismatch)
        return Playground(self, find_base(self, [], base_of(base)), loading=loading, bounds=bounds)

    @extra_named("`Library.run`")
    def run(
        self,
        adapter: Adapters | None = None,
        prompt: str | Sequence[str] | None = None,
        *,
        compare: Sequence[Adapters] | None = None,
        base: BaseLike | None = None,
        system: str | None = None,
        chat: bool | None = None,
        template: str | None = None,
        max_new_tokens: Count | None = None,
        temperature: Temperature | None = None,
        top_p: Share | None = None,
        seed: Seed | None = None,
        batch: StrPath | None = None,
        batch_size: Count = 8,
        dtype: LoadPrecision = "auto",
        load_in: LoadIn | None = None,
        allow_base_mismatch: bool = False,
        prove_base: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> ComparedAnswers | BatchAnswers:
        """Load the base, answer one prompt or several with an adapter on it, and let go of both.

        A program that asks more than once loads the model itself and uses `attach` or `bank`.

        Args:
            adapter: one, several, a mapping to weights, or None (or an empty mapping) for the plain base.
            prompt: one or several.
            compare: also answer with each of these; an empty mapping is the base without an adapter.
            base: the base, where the spec names none.
            system: what the chat template puts before the prompt; means `chat`.
            chat: put the prompt into a chat template; False uses it unchanged. Without `chat`, `template` or `system`,
                the form that the adapter's build states is used.
            template: a text with one `{input}`, around the prompt.
            max_new_tokens: length; default: that of the adapter's form, or 64.
            temperature: draw tokens; 0 is greedy, the default without `top_p`.
            top_p: draw from the likeliest only.
            seed: makes drawing repeatable; default: a random one, which the result has.
            batch: in place of `prompt`, a file of JSON lines `{prompt, adapter?, system?, id?}`; `-` is stdin. Rows
                that name no adapter are for `adapter`, and an empty mapping is the base without an adapter.
            batch_size: so many of several prompts at once.
            dtype: precision of the base in memory.
            load_in: `4bit` or `8bit` packs the base's linear layers.
            allow_base_mismatch: run on other weights of the same shapes.
            prove_base: hash the base's parameters before and after.
            on_text: called with each piece of the text while it is written; for one prompt.

        Returns:
            `.answers`, which one goes through: one for each prompt, row or choice, with `.text` and `.tokens`; from a
            classifier (SEQ_CLS) also `.label` and `.probabilities`. `.base`, `.seed`, `.base_unchanged`.

        Raises:
            AdapterNotFound, NoCompatibleRelease: an adapter is not here, or none fits.
            NotFound: there is no such file of rows.
            Incompatible: the base or the adapter cannot answer.
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read; or rows cannot
                be answered, and none was.
        """
        from adapterhub.api.steps.answering import Run, choice_of, read_rows, rows_of, writing_of
        from adapterhub.inference.answering import Loading, Typed

        typed = Typed(chat=chat, template=template, system=system)
        typed.ensure_clear()
        asked = Run(
            library=self.named,
            reports=self.reports,
            loading=Loading(base=base_of(base), dtype=dtype, load_in=load_in, allow_base_mismatch=allow_base_mismatch),
            typed=typed,
            writing=writing_of(temperature, top_p, seed),
            max_new_tokens=max_new_tokens,
            prove_base=prove_base,
        )
        if batch is not None:
            refuse("each row of `--batch` has its prompt and its adapter", prompt=prompt, compare=compare)
            default = None if adapter is None else choice_of(adapter)
            return asked.rows(*read_rows(path_of(batch), default), size=batch_size)
        if prompt is None:
            raise UsageProblem("there is no prompt", hint="pass a prompt, or a file of prompts with `--batch`")
        if not isinstance(prompt, str):
            refuse("one prompt is compared at a time", compare=compare)
            return asked.rows(*rows_of(prompt, choice_of(adapter)), size=batch_size)
        choices = [choice_of(one) for one in (adapter, *(compare or ()))]
        return asked.prompt(choices, prompt, compares=compare is not None, on_text=on_text)

    @extra_named("`Library.draw`")
    def draw(
        self,
        adapter: Adapters | None,
        prompt: str,
        *,
        base: BaseLike | None = None,
        steps: Steps | None = None,
        guidance: Guidance | None = None,
        size: tuple[int, int] | None = None,
        seed: Seed | None = None,
        dtype: LoadPrecision = "auto",
        allow_base_mismatch: bool = False,
    ) -> DrawnImage:
        """Load a pipeline, draw one image with an adapter on it, and let go of both. Needs the extra `diffusion`.

        A program that draws more than once loads the pipeline itself and uses `attach` or `bank`.

        Args:
            adapter: one, several, a mapping to weights, or None for the plain pipeline.
            prompt: what the image shows.
            base: the pipeline, where the spec names none; registered from a folder of diffusers.
            steps: of the scheduler; default: the pipeline's own number.
            guidance: how strongly the prompt leads; default: the pipeline's own.
            size: width and height in pixels; default: the pipeline's own.
            seed: makes the image repeatable on one machine; default: a random one, which the result has.
            dtype: precision of the pipeline in memory.
            allow_base_mismatch: draw on other weights of the same shapes.

        Returns:
            `.image` (of Pillow), `.adapters`, `.seed`, `.seconds`; `.written(path)` stores it as PNG.

        Raises:
            AdapterNotFound, NoCompatibleRelease: an adapter is not here, or none fits.
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            MissingExtra: diffusers is not installed.
            Incompatible: the base is not a pipeline in a folder, or cannot draw this.
        """
        from adapterhub.api.steps.answering import choice_of, seed_of
        from adapterhub.api.steps.finding import find_base

        choice, library = choice_of(adapter), self.named
        record = find_base(library, [choice], base_of(base))
        from adapterhub.inference.images import Drawing, draw

        drawing = Drawing(prompt=prompt, seed=seed_of(seed), steps=steps, guidance=guidance, size=size)
        with self.reports.steps("draw", unit="steps") as on_step:
            return draw(
                library,
                record,
                choice,
                drawing,
                dtype=dtype,
                allow_base_mismatch=allow_base_mismatch,
                on_step=on_step,
                says=self.reports,
            )
