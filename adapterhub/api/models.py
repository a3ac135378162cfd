"""Adapters and models from Python: fuse, export, tune weights, attach, answer a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from adapterhub.api.opened import Adapters, BaseLike, OpenedLibrary, base_of, folder_text, text_of
from adapterhub.core.arguments import (
    Count,
    Guidance,
    LoadIn,
    LoadPrecision,
    ModelLike,
    Seed,
    Share,
    Steps,
    Temperature,
    parsed,
)
from adapterhub.core.extras import extra_named
from adapterhub.core.specs import BaseSpec

if TYPE_CHECKING:
    import torch

    from adapterhub.inference.bank import AdapterBank
    from adapterhub.inference.generation import Answer
    from adapterhub.inference.images import Drawn
    from adapterhub.inference.loader import Attached
    from adapterhub.inference.playground import Playground, PlaygroundBounds


@parsed
class WithModels(OpenedLibrary):
    """Everything that puts adapters into a model, on a model, or into another program's files."""

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
        """Put adapters of this library on `model`; see `adapterhub.attach`."""
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
        """An `AdapterBank` on `model` that takes its adapters from this library."""
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
        """A base on which up to four choices of adapters answer a prompt side by side, token by token.

        The first question loads the base; it stays in memory, once for all adapters, until `close` or the end of a
        `with` block. A choice is a mapping from adapters to weights, so that a merge is tried before it is made, and
        an empty one is the base alone: `playground.ask([{"a": 0.7, "b": 0.3}, {"a": 1.0}, {}], "The parties")`.

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
        adapter: Adapters | None,
        prompt: str | Sequence[str],
        *,
        base: BaseLike | None = None,
        system: str | None = None,
        chat: bool | None = None,
        template: str | None = None,
        max_new_tokens: Count | None = None,
        temperature: Temperature = 0.0,
        top_p: Share = 1.0,
        seed: Seed = 0,
        dtype: LoadPrecision = "auto",
        load_in: LoadIn | None = None,
        allow_base_mismatch: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> Sequence[Answer]:
        """Load the base, answer one prompt or several with an adapter on it, and let go of both.

        A program that asks more than once loads the model itself and uses `attach` or `bank`.

        Args:
            adapter: one, several, a mapping to weights, or None for the base alone.
            prompt: one or several.
            base: the base, where the spec names none.
            system: what the chat template puts before the prompt; means `chat`.
            chat: put the prompt into a chat template; False uses it unchanged. Without `chat`, `template` or `system`,
                the form that the adapter's build states is used.
            template: a text with one `{input}`, around the prompt.
            max_new_tokens: length; default: that of the adapter's form, else 64.
            temperature: draw tokens; 0 is greedy.
            top_p: draw from the likeliest only.
            seed: makes drawing repeatable.
            dtype: precision of the base in memory.
            load_in: `4bit` or `8bit` packs the base's linear layers.
            allow_base_mismatch: run on other weights of the same shapes.
            on_text: called with each piece of the text while it is written; for one prompt.

        Returns:
            One answer for each prompt: `.text`, `.tokens`, `.seconds`; from a classifier (SEQ_CLS) also `.label` and
            `.probabilities`.

        Raises:
            AdapterNotFound, NoCompatibleRelease: an adapter is not here, or none fits.
            Incompatible: the base or the adapter cannot answer.
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
        """
        from adapterhub.api.steps.finding import find_base
        from adapterhub.distribution.finding import with_weights
        from adapterhub.inference.answering import Typed, wish_of
        from adapterhub.inference.classification import classify, kinds_of
        from adapterhub.inference.generation import NEW_TOKENS, Question, Writing, write
        from adapterhub.inference.loader import attach
        from adapterhub.inference.loader.text import load_base

        typed = Typed(chat=chat, template=template, system=system)
        typed.ensure_clear()
        pairs = dict(with_weights(adapter, None)) if adapter is not None else {}
        weights = {text_of(what): weight for what, weight in pairs.items()}
        record = find_base(self, [weights], base_of(base))
        assert record.path is not None  # see `find_base`
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        writing = Writing(max_new_tokens=max_new_tokens or NEW_TOKENS, temperature=temperature, top_p=top_p, seed=seed)
        named = BaseSpec.parse(record.alias or folder_text(record.path))
        kinds = kinds_of(self, pairs, named, allow_base_mismatch=allow_base_mismatch)
        labels, forms = kinds.labels, {text_of(what): form for what, form in kinds.forms.items()}
        wish = wish_of(weights, forms, typed)
        form = wish.form
        if form.form != "raw" or any(forms.values()):
            self.reports.note(f"prompt form: {form.label}{wish.states}")
        questions = [
            Question(text=text, form=form, max_new_tokens=max_new_tokens or form.max_new_tokens) for text in prompts
        ]
        model, tokenizer = load_base(record.path, dtype=dtype, load_in=load_in, labels=labels)
        if not pairs:
            return write(model, tokenizer, questions, writing, on_text=on_text)
        with attach(model, pairs, library=self, base=named, allow_base_mismatch=allow_base_mismatch) as attached:
            for warning in attached.warnings:
                self.reports.warn(warning)
            if labels is not None:
                return classify(attached.model, tokenizer, questions, on_text=on_text)
            return write(attached.model, tokenizer, questions, writing, on_text=on_text)

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
        seed: Seed = 0,
        dtype: LoadPrecision = "auto",
        allow_base_mismatch: bool = False,
    ) -> Drawn:
        """Load a pipeline, draw one image with an adapter on it, and let go of both. Needs the extra `diffusion`.

        A program that draws more than once loads the pipeline itself and uses `attach` or `bank`.

        Args:
            adapter: one, several, a mapping to weights, or None for the pipeline alone.
            prompt: what the image shows.
            base: the pipeline, where the spec names none; registered from a folder of diffusers.
            steps: of the scheduler; default: the pipeline's own number.
            guidance: how strongly the prompt leads; default: the pipeline's own.
            size: width and height in pixels; default: the pipeline's own.
            seed: makes the image repeatable on one machine.
            dtype: precision of the pipeline in memory.
            allow_base_mismatch: draw on other weights of the same shapes.

        Returns:
            `.image` (of Pillow), `.adapters`, `.seconds`.

        Raises:
            AdapterNotFound, NoCompatibleRelease: an adapter is not here, or none fits.
            BaseNotFound, Malformed: the base is not known here, or its record or folder cannot be read.
            MissingExtra: diffusers is not installed.
            Incompatible: the base is no pipeline in a folder, or cannot draw this.
        """
        from adapterhub.api.steps.finding import find_base
        from adapterhub.distribution.finding import with_weights
        from adapterhub.inference.images import Drawing, draw

        pairs = dict(with_weights(adapter, None)) if adapter is not None else {}
        record = find_base(self, [{text_of(what): weight for what, weight in pairs.items()}], base_of(base))
        drawing = Drawing(prompt=prompt, seed=seed, steps=steps, guidance=guidance, size=size)
        drawn = draw(self, record, pairs, drawing, dtype=dtype, allow_base_mismatch=allow_base_mismatch)
        for each in drawn.adapters:
            for warning in each.warnings:
                self.reports.warn(f"`{each.label}` {warning}")
        return drawn
