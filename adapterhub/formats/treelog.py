"""An append-only log as a Merkle tree: hashes and proofs, tiles, and heads that a registry signs.

Everything is as C2SP has it: RFC 6962 hashes, `tlog-tiles` for the tree and its entries, `tlog-checkpoint` in a
`signed-note` with Ed25519 for a head. Verifiers of Go's checksum database (`golang.org/x/mod/sumdb`) read it. A node
(level, position) is the root of the 2^level entries from position · 2^level on, which never changes once all are there.

Sources: RFC 6962 section 2.1, RFC 9162 section 2.1.3.2 and 2.1.4.2, c2sp.org/tlog-tiles, c2sp.org/tlog-checkpoint,
c2sp.org/signed-note, c2sp.org/tlog-cosignature.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from adapterhub.core.digests import Digest, digest_of
from adapterhub.core.errors import UsageProblem, shown

Node = tuple[int, int]
"""Level and position."""
TILE_LEVELS: Final = 8
TILE_WIDTH: Final = 1 << TILE_LEVELS
MOST_ENTRY_BYTES: Final = (1 << 16) - 1
MOST_NOTE_CHARACTERS: Final = 4096
MOST_AHEAD_S: Final = 600
"""The clock of a witness may be ahead of the reader's by so much."""
_ED25519: Final = b"\x01"
_COSIGNATURE: Final = b"\x04"
_SPKI: Final = bytes.fromhex("302a300506032b6570032100")  # before the key in its DER form
_NAME: Final = re.compile(r"[!-*,-~]{1,200}")  # without spaces and `+`
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_TILE: Final = re.compile(r"(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


# ------------------------------------------------------------ the tree
def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of an entry."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node with these two below it."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def appended(size: int, leaf: bytes, node: Callable[[Node], bytes]) -> list[tuple[Node, bytes]]:
    """Return the nodes that become complete when `leaf` is appended to `size` entries; `node` gives earlier ones."""
    level, position, made = 0, size, leaf
    found = [((level, position), made)]
    while position & 1:
        made = node_hash(node((level, position - 1)), made)
        level, position = level + 1, position >> 1
        found.append(((level, position), made))
    return found


def peaks(first: int, end: int) -> list[Node]:
    """Return the fewest complete nodes that together are the entries from `first` to before `end`, from left to right.

    `first` is a multiple of the largest power of two that fits behind it, as in every range of a proof.
    """
    found = []
    while first < end:
        level = (end - first).bit_length() - 1
        found.append((level, first >> level))
        first += 1 << level
    return found


def joined(hashes: Sequence[bytes]) -> bytes:
    """Return the root over `peaks`."""
    if not hashes:
        return EMPTY_ROOT
    made = hashes[-1]
    for left in reversed(hashes[:-1]):
        made = node_hash(left, made)
    return made


Range = tuple[int, int]


def inclusion(index: int, size: int) -> list[Range]:
    """Return the ranges of entries whose roots prove that the entry `index` is among the first `size`, lowest first."""
    first, end = 0, size
    found: list[Range] = []
    while end - first > 1:
        middle = first + _half(end - first)
        if index < middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((first, middle))
            first = middle
    return found[::-1]


def consistency(old: int, new: int) -> list[Range]:
    """Return the ranges of entries whose roots prove that the tree of `new` entries begins with that of `old`."""
    if not 0 < old < new:
        return []
    first, end, whole = 0, new, True
    found: list[Range] = []
    while old != end:
        middle = first + _half(end - first)
        if old <= middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((first, middle))
            first, whole = middle, False
    return [*([] if whole else [(first, end)]), *found[::-1]]


def _half(size: int) -> int:
    """Return the largest power of two below `size`, which is at least 2."""
    return 1 << (size - 1).bit_length() - 1


def includes(root: bytes, size: int, index: int, leaf: bytes, proof: Sequence[bytes]) -> bool:
    """Return whether `proof` shows that the tree with this root and size has `leaf` at `index`."""
    if not 0 <= index < size:
        return False
    at, last, made = index, size - 1, leaf
    for part in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            made = node_hash(part, made)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            made = node_hash(made, part)
        at, last = at >> 1, last >> 1
    return last == 0 and made == root


def extends(old: Head, new: Head, proof: Sequence[bytes]) -> bool:
    """Return whether `proof` shows that the tree `new` begins with all of `old`."""
    if old.size > new.size:
        return False
    if old.size in (0, new.size):
        return not proof and (old.root == new.root if old.size else old.size < new.size or new.root == EMPTY_ROOT)
    parts = [old.root, *proof] if old.size & (old.size - 1) == 0 else list(proof)
    if not parts:
        return False
    at, last = old.size - 1, new.size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    before = after = parts[0]
    for part in parts[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            before, after = node_hash(part, before), node_hash(part, after)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            after = node_hash(after, part)
        at, last = at >> 1, last >> 1
    return last == 0 and before == old.root and after == new.root


# ------------------------------------------------------------ tiles
@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of the tree; `level` counts in tiles, and is None for a bundle of entries."""

    level: int | None
    number: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """Its path below `tile/`, as `0/x001/234.p/5`."""
        level = "entries" if self.level is None else str(self.level)
        groups = [f"{self.number % 1000:03}"]
        rest = self.number // 1000
        while rest:
            groups.append(f"x{rest % 1000:03}")
            rest //= 1000
        part = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"{level}/{'/'.join(reversed(groups))}{part}"

    @classmethod
    def parse(cls, path: str) -> Tile:
        """Return the tile of a path.

        Raises:
            ValueError: it is not the path of a tile, or not the only spelling of one.
        """
        found = _TILE.fullmatch(path)
        if found is None:
            raise ValueError("expected a tile such as 0/000 or entries/000.p/17")
        level, groups, width = found.groups()
        number = int("".join(groups.replace("x", "").split("/")))
        tile = cls(None if level == "entries" else int(level), number, int(width or TILE_WIDTH))
        if tile.path != path or (tile.level or 0) * TILE_LEVELS > 63 or tile.width > TILE_WIDTH:
            raise ValueError("expected a tile such as 0/000 or entries/000.p/17")
        return tile


def bundle(entries: Iterable[bytes]) -> bytes:
    """Return a tile of entries: each behind its length, two bytes, big-endian."""
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


# ------------------------------------------------------------ heads
@dataclass(frozen=True, slots=True)
class Head:
    """The state of a log: how many entries it has, and the root of their tree."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The signed text of its checkpoint."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


@dataclass(frozen=True, slots=True)
class LogKey:
    """The public key of a log, whose origin is `name`, or of a witness; `str()` gives the form of `signed-note`."""

    name: str
    public: bytes
    is_witness: bool = False

    @property
    def _tagged(self) -> bytes:
        return (_COSIGNATURE if self.is_witness else _ED25519) + self.public

    @property
    def id(self) -> bytes:
        """The four bytes by which a signature names its key."""
        return hashlib.sha256(self.name.encode() + b"\n" + self._tagged).digest()[:4]

    @property
    def fingerprint(self) -> Digest:
        """The SHA-256 of the key's PEM text, by which bundles name it."""
        return digest_of(
            b"-----BEGIN PUBLIC KEY-----\n%b\n-----END PUBLIC KEY-----\n" % base64.b64encode(_SPKI + self.public)
        )

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Return whether `signature` was made over `data` with the private half."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, data)
        except InvalidSignature:
            return False
        return True

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(self._tagged).decode()}"

    @classmethod
    def parse(cls, text: str, *, is_witness: bool = False) -> LogKey:
        """Return the key of a log, or of a witness, in a text.

        Raises:
            ValueError: it is not a key.
        """
        name, _, rest = text.partition("+")
        raw = _decoded(rest.partition("+")[2])
        key = cls(name, raw[1:], is_witness)
        if not _NAME.fullmatch(name) or len(raw) != 33 or str(key) != text:
            start = "witness.example+1a2b3c4d+BA" if is_witness else "log.example+1a2b3c4d+AT"
            raise ValueError(f"expected a key such as {start}…")
        return key


def new_seed() -> bytes:
    """Return a new private key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate().private_bytes_raw()


@dataclass(frozen=True, slots=True)
class LogSigner:
    """Signs the heads of one log with the private key `seed`.

    The name begins with the public key's, so no two registries share one; `log` is that of one log among several.
    """

    seed: bytes
    log: str = ""

    @property
    def key(self) -> LogKey:
        """The public key, by the name of the log."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        public = Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()
        name = f"adapterhub-registry/{hashlib.sha256(public).hexdigest()[:16]}"
        return LogKey(f"{name}/{self.log}" if self.log else name, public)

    def signature(self, data: bytes) -> bytes:
        """Return the signature over bytes, whose first bytes identify their kind."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(data)

    def sign(self, size: int, root: bytes) -> str:
        """Return the checkpoint of a tree."""
        key = self.key
        head = Head(key.name, size, root)
        signature = self.signature(head.text.encode())
        return f"{head.text}\n\N{EM DASH} {key.name} {base64.b64encode(key.id + signature).decode()}\n"

    def cosign(self, head: Head, at_s: int) -> str:
        """Return the signature line of a witness with this key, who saw at a time that `head` extends all earlier."""
        key = witness_key(self.seed)
        signed = at_s.to_bytes(8, "big") + self.signature(_cosigned(head, at_s))
        return f"\N{EM DASH} {key.name} {base64.b64encode(key.id + signed).decode()}\n"


def witness_key(seed: bytes) -> LogKey:
    """Return the public key of the witness with a private key; its name begins with the key's, as that of a log."""
    public = LogSigner(seed).key.public
    return LogKey(f"adapterhub-witness/{hashlib.sha256(public).hexdigest()[:16]}", public, is_witness=True)


def parse_witness(text: str) -> LogKey:
    """Return the public key of a witness.

    Raises:
        UsageProblem: the text is not such a key.
    """
    try:
        return LogKey.parse(text, is_witness=True)
    except ValueError as error:
        said = f"witness `{shown(text)}`: {error}"
        raise UsageProblem(said, hint="`adapt mirror --witness` prints one") from None


def _cosigned(head: Head, at_s: int) -> bytes:
    return f"cosignature/v1\ntime {at_s}\n{head.text}".encode()


def cosignature(note: str, head: Head, witness: LogKey) -> tuple[int, str] | None:
    """Return when a witness last signed the `head` of a note, in seconds since 1970, and the line; None if it did not.

    A signature dated in the future does not count: it would stay the newest one.
    """
    begin, found, latest_s = f"\N{EM DASH} {witness.name} ", None, time.time() + MOST_AHEAD_S
    for line in note.rpartition("\n\n")[2].splitlines():
        try:
            raw = _decoded(line.removeprefix(begin)) if line.startswith(begin) else b""
        except ValueError:
            continue
        if len(raw) == 76 and raw[:4] == witness.id:
            at_s = int.from_bytes(raw[4:12], "big")
            if at_s <= latest_s and witness.verifies(raw[12:], _cosigned(head, at_s)):
                found = max(found or (0, ""), (at_s, f"{line}\n"))
    return found


def opened_note(note: str, key: LogKey) -> Head:
    """Return the head in a checkpoint that `key` signed. Other signatures, those of witnesses, are left unread.

    Raises:
        ValueError: it is not a checkpoint, or not signed by `key`; the message is the reason.
    """
    text, gap, signatures = note.rpartition("\n\n")
    if len(note) > MOST_NOTE_CHARACTERS or not gap or not signatures.endswith("\n"):
        raise ValueError("is not a signed note")
    text += "\n"
    begin = f"\N{EM DASH} {key.name} "
    given = [_decoded(line.removeprefix(begin)) for line in signatures.splitlines() if line.startswith(begin)]
    mine = [one[4:] for one in given if one[:4] == key.id]
    if len(mine) != 1:
        raise ValueError("is not signed by its key")
    if not key.verifies(mine[0], text.encode()):
        raise ValueError("is not signed by its key: the signature is wrong")
    head = head_in(text)
    if head.origin != key.name:
        raise ValueError("is signed, but is not a checkpoint of this log")
    return head


def head_in(text: str) -> Head:
    """Return the head in a checkpoint, whose signatures are left unread.

    Raises:
        ValueError: it is not a checkpoint; the message is the reason.
    """
    lines = text.split("\n")
    if len(lines) < 4 or not _SIZE.fullmatch(lines[1]):
        raise ValueError("is signed, but is not a checkpoint of this log")
    root = _decoded(lines[2])
    if len(root) != 32:
        raise ValueError("is signed, but has no root")
    return Head(lines[0], int(lines[1]), root)


def _decoded(text: str) -> bytes:
    """Return the bytes of a text in base64; raises `ValueError`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not base64") from None
