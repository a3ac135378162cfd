"""Related bases: each is made here from a base of the benchmark of contracts, from a seed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.contracts.judging import Bench
from tests.bench.contracts.tasks import LETTERS, SYMBOLS

Change = Callable[[Bench, Any], None]
"""Changes a copy of the base that is in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A base and one that is related to it; `adapters` counts how many are asked."""

    family: str
    name: str
    change: Change | None = None
    make: Callable[[Path], Path] | None = None
    adapters: int = 10
    needs_port: bool = True

    @property
    def label(self) -> str:
        """Its row in a table."""
        return f"{self.family}: {self.name}"

    def base(self, bench: Bench, work: Path) -> Path:
        """The folder of the new base, made if need be."""
        if self.make is not None:
            return self.make(bench.work)
        folder = work / "bases" / f"{self.family}-{self.name.replace(' ', '-').replace('%', 'pc')}"
        if folder.is_dir():
            return folder
        import torch
        from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

        kinds = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM, "classify": AutoModel}
        model = kinds[bench.family.kind].from_pretrained(bench.base, dtype=torch.float32)
        torch.manual_seed(0)
        assert self.change is not None  # one of the two
        self.change(bench, model)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        bench.tokenizer.save_pretrained(partial)
        partial.rename(folder)
        return folder


def _matrices(model: Any) -> list[Any]:
    """The weights of its layers, without the embeddings of tokens."""
    tables = {
        id(one.weight) for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one is not None
    }
    return [one for one in model.parameters() if one.ndim == 2 and id(one) not in tables]


def more_training(steps: int, rate: float) -> Change:
    """Further training of all weights, each step `rate` of a weight's own length long, on what the base was trained on."""

    def change(bench: Bench, model: Any) -> None:
        import torch

        rng, model = random.Random(7), model.train()
        for _ in range(steps):
            loss = _loss(bench, model, rng)
            loss.backward()
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.grad is not None and float(weight.grad.norm()):
                        weight.sub_(rate * weight.grad * (weight.norm() / weight.grad.norm()))
                        weight.grad = None
        model.eval()

    return change


def _loss(bench: Bench, model: Any, rng: random.Random) -> Any:
    """The loss on some texts: the next token of a writer, the masked tokens' own vectors of an encoder."""
    import torch

    from tests.bench.contracts.training import _loss as of_rows

    if bench.family.kind == "classify":
        texts = [_text(bench, rng) for _ in range(8)]
        rows = bench.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=64)
        hidden = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).last_hidden_state
        kept = torch.rand(rows["input_ids"].shape) < 0.15
        logits = hidden @ model.get_input_embeddings().weight.T
        return (
            torch.nn.functional.cross_entropy(logits[kept], rows["input_ids"][kept]) if kept.any() else logits.sum() * 0
        )
    if bench.name == "smollm2":
        texts = [_text(bench, rng) for _ in range(2)]
        rows = bench.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=96)["input_ids"]
        return model(input_ids=rows, labels=rows).loss
    pairs = []
    for _ in range(32):
        symbol, text = rng.choice(list(SYMBOLS)), "".join(rng.choice(LETTERS) for _ in range(rng.randint(4, 7)))
        pairs.append((f"{symbol}{text}=", SYMBOLS[symbol](text)))
    return of_rows(model, bench.tokenizer, pairs)


_TEXTS: list[str] = []


def _text(bench: Bench, rng: random.Random) -> str:
    """A piece of English from Python's own documentation, or inputs of the family's last task."""
    if bench.name in ("smollm2", "minilm"):
        if not _TEXTS:
            from pydoc_data.topics import topics

            _TEXTS.extend(" ".join(text.split()) for text in topics.values())
        text = rng.choice(_TEXTS)
        start = rng.randrange(max(1, len(text) - 400))
        return text[start : start + 400]
    task = list(bench.family.tasks.values())[-1]
    return rng.choice([asked for asked, _ in task.rows(99)[0]])


def pruned(share: float) -> Change:
    """The smallest numbers of each weight are zero."""

    def change(_: Bench, model: Any) -> None:
        import torch

        with torch.no_grad():
            for weight in _matrices(model):
                least = weight.abs().flatten().kthvalue(max(1, int(share * weight.numel()))).values
                weight[weight.abs() <= least] = 0

    return change


def rounded(bits: int) -> Change:
    """Weights rounded to so many bits a number, row by row, as a quantised copy that was saved as floats again has them."""

    def change(_: Bench, model: Any) -> None:
        import torch

        with torch.no_grad():
            for weight in _matrices(model):
                step = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
                weight.copy_((weight / step).round() * step)

    return change


def merged(steps: int, rate: float) -> Change:
    """The mean of the base and of a further trained one."""

    def change(bench: Bench, model: Any) -> None:
        import torch

        before = {name: one.detach().clone() for name, one in model.named_parameters()}
        more_training(steps, rate)(bench, model)
        with torch.no_grad():
            for name, one in model.named_parameters():
                one.copy_((one + before[name]) / 2)

    return change


def without_layer(at: int) -> Change:
    """One layer is gone."""

    def change(_: Bench, model: Any) -> None:
        holder, name = _layers(model)
        layers = getattr(holder, name)
        del layers[at]
        for number, layer in enumerate(layers):
            for part in layer.modules():
                if hasattr(part, "layer_idx"):
                    part.layer_idx = number
        key = "n_layer" if hasattr(model.config, "n_layer") else "num_hidden_layers"
        setattr(model.config, key, len(layers))
        if getattr(model.config, "layer_types", None):
            del model.config.layer_types[at]

    return change


def _layers(model: Any) -> tuple[Any, str]:
    for holder in model.modules():
        for name in ("h", "layers", "layer"):
            if hasattr(holder, name) and len(getattr(holder, name)) > 1:
                return holder, name
    raise LookupError(type(model).__name__)


def permuted(_: Bench, model: Any) -> None:
    """The hidden numbers in another order throughout, which changes no answer."""
    from tests.support.moved_bases import reorder

    reorder(model)


def permuted_throughout(_: Bench, model: Any) -> None:
    """The hidden numbers and those inside each MLP in another order: both sides of each weight of an MLP turn."""
    import torch

    from tests.support.moved_bases import reorder

    reorder(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in model.transformer.h:
            order = torch.randperm(block.mlp.c_fc.weight.shape[1], generator=generator)
            block.mlp.c_fc.weight.copy_(block.mlp.c_fc.weight[:, order])
            block.mlp.c_fc.bias.copy_(block.mlp.c_fc.bias[order])
            block.mlp.c_proj.weight.copy_(block.mlp.c_proj.weight[order])


def other_seed(bench: Bench, model: Any) -> None:
    """No relative: a model of the same shapes, trained from other numbers on the same texts."""
    import torch

    from tests.bench.contracts.training import fit

    torch.manual_seed(1)
    model.init_weights() if hasattr(model, "init_weights") else None
    for one in model.parameters():
        if one.ndim == 2:
            torch.nn.init.normal_(one, std=0.02)
    rng, rows = random.Random(1), []
    for _ in range(4000):
        symbol, text = rng.choice(list(SYMBOLS)), "".join(rng.choice(LETTERS) for _ in range(rng.randint(4, 7)))
        rows.append((f"{symbol}{text}=", SYMBOLS[symbol](text)))
    fit(model, bench.tokenizer, rows, steps=300, batch=32, rate=2e-3)


def more_tokens(_: Bench, model: Any) -> None:
    """The same model with eight more tokens: it needs no port."""
    model.resize_token_embeddings(model.get_input_embeddings().weight.shape[0] + 8, mean_resizing=False)


def in_bfloat16(_: Bench, model: Any) -> None:
    """The same model in another precision: it needs no port."""
    import torch

    model.to(torch.bfloat16)


def _rxnfp(name: str) -> Callable[[Path], Path]:
    """Another checkpoint of the same BERT in the package, which its authors trained on from the first."""

    def make(work: Path) -> Path:
        folder = work / "bases" / f"rxnfp-{name}"
        if (folder / "tokenizer.json").exists():
            return folder
        from tests.bench.bench_quality import training_script
        from tests.bench.contracts.families import _package, _write_words

        _package(work, "rxnfp==0.1.0")
        script = training_script()
        place = script.package_dir("rxnfp") / "models/transformers" / name
        script.prepare_pickled(folder, place, "BertModel", "BertConfig")
        _write_words(folder, (folder / "vocab.txt").read_text().splitlines())
        return folder

    return make


def _common(family: str, adapters: int, sizes: Sequence[tuple[str, int, float]], layer: int | None) -> list[Pair]:
    found = [Pair(family=family, name=name, change=more_training(steps, rate), adapters=adapters)
             for name, steps, rate in sizes]  # fmt: skip
    most = sizes[-1]
    found += [
        Pair(family=family, name="mean with trained most", change=merged(*most[1:]), adapters=adapters),
        Pair(family=family, name="pruned by 20 %", change=pruned(0.2), adapters=adapters),
        Pair(family=family, name="pruned by 50 %", change=pruned(0.5), adapters=adapters),
        Pair(family=family, name="rounded to 8 bits", change=rounded(8), adapters=adapters),
        Pair(family=family, name="rounded to 4 bits", change=rounded(4), adapters=adapters),
    ]
    if layer is not None:
        found.append(Pair(family=family, name="without a layer", change=without_layer(layer), adapters=adapters))
    return found


_NOT_ASKED: Final = ("trained more", "trained most", "mean with trained most", "pruned by 50 %", "rounded to 8 bits")
"""Of a large base, what costs much and shows little."""
_SMALL: Final = [("trained a little", 20, 5e-4), ("trained more", 60, 1e-3), ("trained most", 150, 3e-3)]
_LARGE: Final = [("trained a little", 5, 3e-4), ("trained more", 12, 1e-3), ("trained most", 20, 3e-3)]

PAIRS: Final[Sequence[Pair]] = (
    *_common("small-gpt2", 7, _SMALL, 1),
    Pair(family="small-gpt2", name="permuted", change=permuted, adapters=7),
    Pair(family="small-gpt2", name="permuted throughout", change=permuted_throughout, adapters=7),
    Pair(family="small-gpt2", name="of another seed", change=other_seed, adapters=7),
    Pair(family="small-gpt2", name="more tokens", change=more_tokens, adapters=1, needs_port=False),
    Pair(family="small-gpt2", name="in bfloat16", change=in_bfloat16, adapters=1, needs_port=False),
    *_common("small-t5", 5, _SMALL, None),
    Pair(family="bert-chemistry", name="fine-tuned by its authors", make=_rxnfp("bert_ft"), adapters=4),
    Pair(family="bert-chemistry", name="fine-tuned on 10k by its authors", make=_rxnfp("bert_ft_10k_25s"), adapters=4),
    *_common("minilm", 3, _LARGE, 3),
    *(pair for pair in _common("smollm2", 2, _LARGE, 20) if pair.name not in _NOT_ASKED),
    Pair(family="smollm2", name="permuted", change=permuted, adapters=2),
)
"""Every pair, the cheap families first."""
