"""The text of recipes: what is wrong in one is told with its path, and printing is the inverse of reading."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.core.errors import AdapterHubError, Malformed
from adapterhub.core.specs import parse_name
from adapterhub.formats.manifest import BaseRef, Manifest
from adapterhub.weights.recipes.toml import (
    DTYPES,
    LIMIT_BYTES,
    MAX_DEPTH,
    MAX_INPUTS,
    MAX_WHOLE,
    Inner,
    Leaf,
    MergeStep,
    Recipe,
    parse_recipe,
    recipe_of,
    to_toml,
)

DIGEST = "sha256:" + "a" * 64

# ---------------------------------------------------------------- reading what somebody else wrote
HEAD = 'format = 1\nname = "x"\n'
ONE = '[[inputs]]\nspec = "a"\nweight = 1\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "format: expected 1, got nothing"),
        ("format = 2", "format: expected 1"),
        ("format = true", "format: expected a whole number, got true or false"),
        (f"format = 0x{'F' * 9000}", "format: expected 1"),
        (f"format = {'9' * 9000}", "not TOML"),
        ("format = = 1", "not TOML"),
        (HEAD, "inputs: no input"),
        (HEAD + "inputs = []", "inputs: no input"),
        (HEAD + "inputs = {}", "inputs: expected a list, got a table"),
        (HEAD + "inputs = [1]", "inputs[0]: expected a table"),
        (HEAD + 'mehtod = "svd"\n' + ONE, "mehtod: no such key; did you mean `method`?"),
        (HEAD + 'method = "svdd"\n' + ONE, "method: no merge method `svdd`; did you mean `svd`?"),
        (HEAD + "method = 3\n" + ONE, "method: expected text, got a whole number"),
        (HEAD + "name = 1979-05-27\n" + ONE, "not TOML"),
        ('format = 1\nname = "Legal QA"\n' + ONE, "name: `Legal QA`"),
        ('format = 1\nname = "con"\n' + ONE, "name: `con`"),
        (HEAD + 'version = "one"\n' + ONE, "version: `one`"),
        (HEAD + "version = 1.0\n" + ONE, "version: expected text, got a number"),
        (HEAD + f'description = "{"x" * 5000}"\n' + ONE, "description: at most 4096 characters"),
        (HEAD + 'digest = "abc"\n' + ONE, "digest: expected sha256:"),
        (HEAD + 'base = "sha256:abc"\n' + ONE, "base: expected sha256:"),
        (HEAD + 'dtype = "f32"\n' + ONE, "dtype: `f32`, expected one of float32"),
        (HEAD + "seed = 3\n" + ONE, "seed: `cat` draws no random numbers"),
        (HEAD + f'method = "dare_ties"\nseed = {MAX_WHOLE + 1}\n' + ONE, "seed: expected 0 to"),
        (HEAD + 'method = "dare_ties"\nseed = -1\n' + ONE, "seed: expected 0 to"),
        (HEAD + 'method = "ties"\noptions = { densty = 0.5 }\n' + ONE, "options.densty: `ties` has no such option; did you mean `density`?"),
        (HEAD + 'method = "ties"\noptions = { density = [] }\n' + ONE, "options.density: expected float, got a list"),
        (HEAD + 'method = "ties"\noptions = { density = nan }\n' + ONE, "options.density: option `density`"),
        (HEAD + 'method = "ties"\noptions = { density = true }\n' + ONE, "options.density: option `density`"),
        (HEAD + f"options = {{ rank = 0x{'F' * 9000} }}\n" + ONE, "options.rank: option `rank`"),
        (HEAD + 'method = "dare_ties"\noptions = { seed = 1 }\n' + ONE, "options.seed: the seed belongs beside"),
        (HEAD + "[options]\nrank = 1.5\n" + ONE, "options.rank: option `rank`"),
        (HEAD + "[metrics]\nmerge_relative_error = 0\n" + ONE, "metrics.merge_relative_error: is measured"),
        (HEAD + "[metrics]\nloss = inf\n" + ONE, "metrics.loss: expected a finite number"),
        (HEAD + "[metrics]\nloss = []\n" + ONE, "metrics.loss: expected a finite number"),
        (HEAD + '[[inputs]]\nspec = "a"\n', "inputs[0].weight: missing"),
        (HEAD + '[[inputs]]\nspec = "a"\nwieght = 1\n', "inputs[0].wieght: no such key; did you mean `weight`?"),
        (HEAD + '[[inputs]]\nspec = "a"\nweight = nan\n', "inputs[0].weight: expected a finite number"),
        (HEAD + '[[inputs]]\nspec = "a"\nweight = 1e999\n', "inputs[0].weight: expected a finite number"),
        (HEAD + '[[inputs]]\nspec = "a"\nweight = "1"\n', "inputs[0].weight: expected a finite number, got text"),
        (HEAD + '[[inputs]]\nspec = "a"\nweight = true\n', "inputs[0].weight: expected a finite number"),
        (HEAD + f'[[inputs]]\nspec = "a"\nweight = 0x{"F" * 9000}\n', "inputs[0].weight: expected a finite number"),
        (HEAD + "[[inputs]]\nweight = 1\n", "inputs[0]: expected one of `spec` and `merge`"),
        (HEAD + '[[inputs]]\nspec = "a"\nweight = 1\nmerge = {}\n', "inputs[0]: expected one of `spec` and `merge`"),
        (HEAD + "[[inputs]]\nmerge = 1\nweight = 1\n", "inputs[0].merge: expected a table"),
        (HEAD + "[[inputs]]\nmerge = {}\nweight = 1\n", "inputs[0].merge.inputs: no input"),
        (HEAD + '[[inputs]]\nweight = 1\n[inputs.merge]\nname = "y"\n', "inputs[0].merge.name: no such key"),
        (HEAD + '[[inputs]]\nspec = "a b"\nweight = 1\n', "inputs[0].spec: `a b`"),
        (HEAD + '[[inputs]]\nspec = "a\\u001b[2J"\nweight = 1\n', "inputs[0].spec: `a\\x1b[2J`"),
        (HEAD + f'[[inputs]]\nspec = "a"\nweight = 1\nsha256 = "{DIGEST}"\n', "inputs[0].sha256: `a` is an adapter; expected digest instead"),
        (HEAD + f'[[inputs]]\nspec = "./a"\nweight = 1\ndigest = "{DIGEST}"\n', "inputs[0].digest: `./a` is a folder"),
        (HEAD + f'[[inputs]]\nmerge = {{}}\nweight = 1\ndigest = "{DIGEST}"\n', "inputs[0].digest: an inner merge has no digest"),
    ],
)  # fmt: skip
def test_every_problem_is_told_with_its_path(text, said):
    with pytest.raises(Malformed) as caught:
        parse_recipe(text.encode(), "merge.toml")

    assert any(line.strip().startswith(said) for line in caught.value.message.splitlines()), caught.value.message
    assert caught.value.message.isprintable() or "\n" in caught.value.message
    assert len(caught.value.message) < 20_000


def test_all_problems_are_told_at_once():
    text = 'format = 1\nname = "X"\nmethod = "tis"\nfoo = 1\n[[inputs]]\nspec = ""\nweight = nan\n'

    with pytest.raises(Malformed) as caught:
        parse_recipe(text.encode())

    assert len(caught.value.message.splitlines()) == 6


def levels(count: int) -> str:
    """A recipe of `count` merges inside each other."""
    text, path = HEAD, "inputs"
    for _ in range(count):
        text += f"[[{path}]]\nweight = 1\n[{path}.merge]\n"
        path += ".merge.inputs"
    return text + f'[[{path}]]\nspec = "a"\nweight = 1\n'


def test_merges_inside_merges_have_a_limit():
    deepest = parse_recipe(levels(MAX_DEPTH).encode())

    assert [leaf.spec for leaf in deepest.step.leaves()] == ["a"]
    with pytest.raises(Malformed, match=f"at most {MAX_DEPTH} levels"):
        parse_recipe(levels(MAX_DEPTH + 1).encode())


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xfe",
        b"#" + b"x" * LIMIT_BYTES,
        (HEAD + ".".join("a" * 50_000) + "=1").encode(),
        (HEAD + "inputs = " + "[" * 50_000).encode(),
        (HEAD + "inputs = " + "[{merge={inputs=" * 5_000).encode(),
        (HEAD + "\n".join(f"method{i} = 1" for i in range(14_000))).encode(),
        (HEAD + "inputs = [" + "{}," * 60_000 + "]").encode(),
        (HEAD + ONE * (MAX_INPUTS + 1)).encode(),
        (HEAD + ONE + "m" * 200_000 + " = 1").encode(),
    ],
    ids=[
        "no text",
        "long",
        "dots",
        "deep list",
        "deep tables",
        "many keys",
        "many inputs",
        "a few too many",
        "long key",
    ],
)
def test_what_is_made_to_hurt_is_refused_in_seconds(raw):
    before = time.process_time()

    with pytest.raises(Malformed) as caught:
        parse_recipe(raw)

    assert time.process_time() - before < 10  # half a second here
    assert len(caught.value.message) < 20_000


# ---------------------------------------------------------------- printing is the inverse of reading
def numbers() -> st.SearchStrategy[float]:
    return st.floats(allow_nan=False, allow_infinity=False)


def digests() -> st.SearchStrategy:
    return st.none() | st.integers(0, 2**256 - 1).map(lambda n: f"sha256:{n:064x}")


def leaves() -> st.SearchStrategy[Leaf]:
    specs = st.sampled_from(["a", "acme/legal-qa==1.0", "a@base-7b>=1,<2"])
    paths = st.text(st.characters(codec="utf-8"), max_size=20).map(lambda text: f"./{text}")
    return st.builds(Leaf, spec=specs, weight=numbers(), digest=digests()) | st.builds(
        Leaf, spec=paths, weight=numbers(), sha256=digests(), config_sha256=digests()
    )


def steps(inputs: st.SearchStrategy) -> st.SearchStrategy[MergeStep]:
    items = st.lists(inputs, min_size=1, max_size=3).map(tuple)
    rank = st.fixed_dictionaries({}, optional={"rank": st.integers(1, MAX_WHOLE)})
    dtype = st.none() | st.sampled_from(DTYPES)
    own = st.fixed_dictionaries(
        {}, optional={"density": numbers(), "majority": st.sampled_from(["total", "frequency"]), "max_error": numbers()}
    )
    seed = st.none() | st.integers(0, MAX_WHOLE)
    return st.builds(
        MergeStep, method=st.sampled_from(["cat", "svd"]), inputs=items, options=rank, dtype=dtype
    ) | st.builds(MergeStep, method=st.just("dare_ties"), inputs=items, options=own, dtype=dtype, seed=seed)


def recipes() -> st.SearchStrategy[Recipe]:
    inputs = st.recursive(leaves(), lambda i: st.builds(Inner, weight=numbers(), step=steps(i)), max_leaves=4)
    text = st.text(st.characters(codec="utf-8"), max_size=40)
    return st.builds(
        Recipe,
        step=steps(inputs),
        name=st.none() | st.sampled_from(["a", "legal-qa"]),
        version=st.none() | st.sampled_from(["1.0", "2.0rc1"]),
        task=st.none() | text,
        description=text,
        license=st.none() | text,
        base=digests(),
        digest=digests(),
        metrics=st.dictionaries(text.filter(lambda key: not key.startswith("merge_")), numbers() | text, max_size=2),
    )


@settings(max_examples=60)
@given(recipes())
def test_a_recipe_reads_back_as_it_was_printed(recipe):
    text = to_toml(recipe)

    assert parse_recipe(text.encode()) == recipe
    assert all(c.isprintable() or c == "\n" for c in text)


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["method", "dtype", "seed", "options", "inputs", "merge", "spec", "weight", "digest", "x"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    ).filter(lambda value: isinstance(value, dict))
)
def test_the_recipe_of_a_hostile_manifest_is_refused_in_plain_words(recipe):
    manifest = Manifest(name=parse_name("a"), version="1.0", base=BaseRef(), method=("LORA",), files=(), recipe=recipe)
    # a manifest from outside holds finite numbers only, which `Manifest.parse` sees to; its digest is not asked for
    object.__setattr__(manifest, "digest", DIGEST)

    try:
        again = recipe_of(manifest)
    except AdapterHubError:  # in plain words; any other error fails the test
        return

    assert parse_recipe(to_toml(again).encode()) == again
