"""The tree of a log: each root and proof as the definitions of RFC 6962 have them, and no other proof passes."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.formats.treelog import (
    EMPTY_ROOT,
    Head,
    LogKey,
    LogSigner,
    Node,
    Tile,
    appended,
    bundle,
    consistency,
    extends,
    includes,
    inclusion,
    joined,
    leaf_hash,
    new_seed,
    node_hash,
    opened_note,
    peaks,
)

ENTRIES = [b"entry %d" % number for number in range(300)]
SIZES = st.integers(0, 300)


def naive(entries: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1."""
    if not entries:
        return EMPTY_ROOT
    if len(entries) == 1:
        return leaf_hash(entries[0])
    half = 1
    while half * 2 < len(entries):
        half *= 2
    return node_hash(naive(entries[:half]), naive(entries[half:]))


def stored() -> dict[Node, bytes]:
    nodes: dict[Node, bytes] = {}
    for size, entry in enumerate(ENTRIES):
        nodes |= dict(appended(size, leaf_hash(entry), nodes.__getitem__))
    return nodes


NODES = stored()


def root(first: int, end: int) -> bytes:
    return joined([NODES[node] for node in peaks(first, end)])


def head(size: int) -> Head:
    return Head("log", size, naive(ENTRIES[:size]))


def proof_of(index: int, size: int) -> list[bytes]:
    return [root(*one) for one in inclusion(index, size)]


def proof_between(old: int, new: int) -> list[bytes]:
    return [root(*one) for one in consistency(old, new)]


@given(SIZES)
def test_the_stored_nodes_join_to_the_root(size: int) -> None:
    assert root(0, size) == naive(ENTRIES[:size])


def test_an_append_makes_each_complete_node_once() -> None:
    assert len(NODES) == sum(len(ENTRIES) >> level for level in range(9))
    for (level, position), value in NODES.items():
        assert value == naive(ENTRIES[position << level : (position + 1) << level])


@given(st.data())
def test_an_entry_is_proven_where_it_is_and_nowhere_else(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 300))
    index = data.draw(st.integers(0, size - 1))
    proof, whole, leaf = proof_of(index, size), naive(ENTRIES[:size]), leaf_hash(ENTRIES[index])

    assert includes(whole, size, index, leaf, proof)
    other = data.draw(st.integers(-1, size + 1).filter(lambda one: one != index))
    assert not includes(whole, size, other, leaf, proof)
    assert not includes(whole, size, index, leaf_hash(b"other"), proof)
    assert not includes(naive(ENTRIES[: size - 1]), size, index, leaf, proof)
    assert not includes(whole, size, index, leaf, [*proof, whole])
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        assert not includes(whole, size, index, leaf, proof[:at] + proof[at + 1 :])
        assert not includes(whole, size, index, leaf, [*proof[:at], bytes(32), *proof[at + 1 :]])


@given(st.data())
def test_a_tree_extends_those_that_it_began_with_and_no_other(data: st.DataObject) -> None:
    new = data.draw(st.integers(1, 300))
    old = data.draw(st.integers(0, new))
    proof = proof_between(old, new)

    assert extends(head(old), head(new), proof)
    forked = Head("log", new, naive([*ENTRIES[: max(old - 1, 0)], b"forged", *ENTRIES[max(old, 1) : new]]))
    if old:
        assert not extends(head(old), forked, proof)
        assert not extends(Head("log", old, bytes(32)), head(new), proof)
    assert not extends(head(old), head(new), [*proof, bytes(32)])
    if old < new:
        assert not extends(head(new), head(old), proof)
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        assert not extends(head(old), head(new), proof[:at] + proof[at + 1 :])
        assert not extends(head(old), head(new), [*proof[:at], bytes(32), *proof[at + 1 :]])


@given(st.none() | st.integers(0, 7), st.integers(0, 10**12), st.integers(1, 256))
def test_a_path_names_one_tile(level: int | None, number: int, width: int) -> None:
    tile = Tile(level, number, width)

    assert Tile.parse(tile.path) == tile


def test_paths_of_tiles_are_those_of_the_specification() -> None:
    paths = [Tile(0, 0).path, Tile(1, 1_234_067, 3).path, Tile(None, 999).path, Tile(None, 1000).path]

    assert paths == ["0/000", "1/x001/x234/067.p/3", "entries/999", "entries/x001/000"]


@pytest.mark.parametrize(
    "path",
    ["", "0/00", "0/0000", "00/000", "8/000", "64/000", "-1/000", "data/000", "0/x000/001", "0/001/002", "0/000.p/0",
     "0/000.p/256", "0/000.p/257", "0/000.p/01", "0/../000", "0/000/", "entries/x1/000", "0/" + "x001/" * 9 + "000"],
)  # fmt: skip
def test_no_other_path_names_a_tile(path: str) -> None:
    with pytest.raises(ValueError, match="tile"):
        Tile.parse(path)


def test_entries_stand_behind_their_lengths() -> None:
    assert bundle([b"ab", b""]) == b"\x00\x02ab\x00\x00"


SIGNER = LogSigner(b"7" * 32)
NOTE = SIGNER.sign(12, naive(ENTRIES[:12]))


def test_a_head_is_read_from_its_note_by_the_key_in_its_text_form() -> None:
    assert opened_note(NOTE, LogKey.parse(str(SIGNER.key))) == Head(SIGNER.key.name, 12, naive(ENTRIES[:12]))


def test_signatures_of_others_beside_that_of_the_log_do_not_count() -> None:
    beside = NOTE + "\N{EM DASH} witness.example " + base64.b64encode(b"\x01\x02\x03\x04" + bytes(64)).decode() + "\n"

    assert opened_note(beside, SIGNER.key).size == 12


@pytest.mark.parametrize(
    ("note", "key"),
    [
        (NOTE, LogSigner(new_seed()).key),
        (NOTE, LogKey(SIGNER.key.name, LogSigner(new_seed()).key.public)),
        (NOTE, LogSigner(SIGNER.seed, "other").key),
        (LogSigner(SIGNER.seed, "other").sign(12, bytes(32)), SIGNER.key),
        (NOTE.replace("\n12\n", "\n13\n"), SIGNER.key),
        (NOTE.replace("\n12\n", "\n012\n"), SIGNER.key),
        (NOTE.partition("\n\n")[0] + "\n\n", SIGNER.key),
        (NOTE + NOTE.rpartition("\n\n")[2], SIGNER.key),
        (NOTE.removesuffix("\n"), SIGNER.key),
        ("", SIGNER.key),
        ("x" * 9000, SIGNER.key),
    ],
)
def test_a_note_that_the_log_did_not_sign_so_is_no_head(note: str, key: LogKey) -> None:
    with pytest.raises(ValueError, match="sign"):
        opened_note(note, key)


@pytest.mark.parametrize("text", ["", "a+b", "log+00000000+AQ==", str(SIGNER.key) + " ", str(SIGNER.key)[:-4]])
def test_no_other_text_is_a_key(text: str) -> None:
    with pytest.raises(ValueError, match=r"base64|expected a key"):
        LogKey.parse(text)
