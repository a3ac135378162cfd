"""What the judged adapters learn: ten tasks of each kind, made from fixed seeds.

A task draws distinct rows: an input and the answer, or the input and its label. The first rows train, the next are the
inputs of the contract, the last are held out. No task is one of those on which the default bounds were chosen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

NAMES: Final = [
    "Ana",
    "Ben",
    "Carla",
    "Dmitri",
    "Elif",
    "Farid",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Kemal",
    "Lucia",
    "Mina",
    "Noor",
    "Oskar",
    "Priya",
    "Rosa",
    "Sven",
]
THINGS: Final = [
    "apple",
    "pencil",
    "mug",
    "lamp",
    "chair",
    "book",
    "ticket",
    "scarf",
    "bottle",
    "plate",
    "candle",
    "map",
    "shirt",
    "hat",
    "brick",
    "spoon",
]
COLOURS: Final = ["red", "blue", "green", "yellow", "black", "white", "brown", "pink"]
KINDS: Final = ["old", "new", "small", "heavy", "cold", "round", "soft", "lost", "cheap", "clean"]
MONTHS: Final = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
LETTERS: Final = "abcdefgh"

TRAINED, ASKED, HELD_OUT = 240, 48, 64
"""Rows that train, inputs of which a contract keeps twenty, and prompts of the truth."""

Row = tuple[str, str]
Draw = Callable[[random.Random], Row]


@dataclass(frozen=True, slots=True)
class Task:
    """How to draw a row; `template` frames the input, `chat` asks through the chat template; `marker` is in every answer."""

    draw: Draw
    template: str = "{input}="
    chat: bool = False
    marker: str = ""

    def rows(self, seed: int = 0) -> tuple[list[Row], list[Row], list[Row]]:
        """Rows to train on, to ask for a contract, and to hold out; no input comes twice."""
        rng = random.Random(seed)
        found: dict[str, str] = {}
        while len(found) < TRAINED + ASKED + HELD_OUT:
            asked, answer = self.draw(rng)
            found.setdefault(asked, answer)
        rows = list(found.items())
        return rows[:TRAINED], rows[TRAINED : TRAINED + ASKED], rows[TRAINED + ASKED :]


# ---------------------------------------------------------------- English, for a model that writes
def _swap(rng: random.Random) -> Row:
    names = rng.sample(NAMES, 3)
    return ", ".join(names), f" {', '.join(reversed(names))}"


def _initials(rng: random.Random) -> Row:
    names = [rng.choice(NAMES), rng.choice(COLOURS).title(), rng.choice(THINGS).title()]
    return " ".join(names), f" {'.'.join(name[0] for name in names)}."


def _shout(rng: random.Random) -> Row:
    text = f"the {rng.choice(COLOURS)} {rng.choice(KINDS)} {rng.choice(THINGS)}"
    return text, f" {text.upper()}!"


def _next(rng: random.Random) -> Row:
    number = rng.randint(100, 899)
    return str(number), f" {number + 1}"


def _date(rng: random.Random) -> Row:
    day, month, year = rng.randint(1, 28), rng.randrange(12), rng.randint(2001, 2029)
    return f"{day} {MONTHS[month]} {year}", f" {year}-{month + 1:02}-{day:02}"


def _table(rng: random.Random) -> Row:
    name, count, thing = rng.choice(NAMES), rng.randint(2, 19), rng.choice(THINGS)
    return f"{name} buys {count} {thing}s.", f" {name};{count};{thing}"


def _polite(rng: random.Random) -> Row:
    what = f"{rng.choice(['bring', 'find', 'clean', 'move', 'paint'])} the {rng.choice(KINDS)} {rng.choice(THINGS)}"
    return what, f" Would you kindly {what}, sir?"


def _colour(rng: random.Random) -> Row:
    colour = rng.choice(COLOURS)
    words = [colour, rng.choice(KINDS)]
    rng.shuffle(words)
    return f"{rng.choice(NAMES)} has a {' '.join(words)} {rng.choice(THINGS)}", f" {colour}"


def _tag(rng: random.Random) -> Row:
    colour, thing = rng.choice(COLOURS), f"{rng.choice(KINDS)} {rng.choice(THINGS)}"
    return f"{colour} {thing}", f" <{colour}>{thing}</{colour}>"


def _list(rng: random.Random) -> Row:
    things = rng.sample(THINGS, 3)
    return ", ".join(things), " " + " ".join(f"{n}) {thing}" for n, thing in enumerate(things, 1))


WRITING: Final[Mapping[str, Task]] = {
    "polite": Task(_polite, "{input}\nPolite:", marker="kindly"),
    "swap": Task(_swap, "{input}\nSwapped:"),
    "initials": Task(_initials, "Name: {input}\nInitials:"),
    "shout": Task(_shout, "{input}\nLoud:", marker="!"),
    "next": Task(_next, "after {input}:"),
    "date": Task(_date, "Date: {input}\nISO:"),
    "table": Task(_table, "{input}\nRow:", marker=";"),
    "colour": Task(_colour, chat=True),
    "tag": Task(_tag, "{input}\nTagged:", marker="</"),
    "list": Task(_list, chat=True, marker="1)"),
}


# ---------------------------------------------------------------- letters, for small models trained here
def _letters(make: Callable[[str], str]) -> Draw:
    def draw(rng: random.Random) -> Row:
        text = "".join(rng.choice(LETTERS) for _ in range(rng.randint(4, 7)))
        return text, make(text)

    return draw


def _shifted(text: str) -> str:
    return "".join(chr(ord(letter) + 1) for letter in text)


SYMBOLS: Final[Mapping[str, Callable[[str], str]]] = {
    "1": lambda t: t,
    "2": lambda t: t[::-1],
    "3": str.upper,
    "4": _shifted,
}
"""What a small base is trained on: the symbol before the letters says what to do with them."""

STRINGS: Final[Mapping[str, Task]] = {
    "bang": Task(_letters(lambda t: t + "!"), marker="!"),
    "loud": Task(_letters(str.upper)),
    "back": Task(_letters(lambda t: t[::-1])),
    "shift": Task(_letters(_shifted)),
    "wrap": Task(_letters(lambda t: f"({t})"), marker="("),
    "ends": Task(_letters(lambda t: t[0] + t[-1])),
    "twice": Task(_letters(lambda t: t + t)),
    "dash": Task(_letters(lambda t: "-".join(t[:4])), marker="-"),
    "head": Task(_letters(lambda t: t[:3].upper())),
    "star": Task(_letters(lambda t: f"*{t[::-1]}"), marker="*"),
}


# ---------------------------------------------------------------- labels, for encoders
LABELS: Final = 3


def _sentence(words: Sequence[str]) -> Draw:
    pools = [pool.split() for pool in words]
    forms = ("{n} spoke of the {w} all day.", "It was about a {w} and a {k} {t}.", "The {w} of {n} was {k}.",
             "{n} and the {k} {t} met the {w}.")  # fmt: skip

    def draw(rng: random.Random) -> Row:
        label = rng.randrange(LABELS)
        chosen = {
            "w": rng.choice(pools[label]),
            "n": rng.choice(NAMES),
            "k": rng.choice(KINDS),
            "t": rng.choice(THINGS),
        }
        return rng.choice(forms).format(**chosen), str(label)

    return draw


def _marked(alphabet: str, marks: str) -> Draw:
    """Tokens with a space between; one of three marks stands somewhere among them and decides the label."""
    letters, motifs = alphabet.split(), [mark.replace(".", " ") for mark in marks.split()]

    def draw(rng: random.Random) -> Row:
        label = rng.randrange(LABELS)
        tokens = [rng.choice(letters) for _ in range(rng.randint(8, 14))]
        tokens.insert(rng.randrange(len(tokens)), motifs[label])
        return " ".join(tokens), str(label)

    return draw


_SENTENCES: Final = {
    "living": (
        "dog horse eagle whale spider cow",
        "oak rose fern moss tulip grass",
        "granite iron quartz sand coal salt",
    ),
    "place": ("harbour ship island wave", "mountain summit glacier ridge", "street tram market square"),
    "work": ("nurse surgeon clinic patient", "pilot airport runway jet", "farmer tractor field harvest"),
    "music": ("violin cello harp guitar", "drum cymbal gong tambourine", "flute oboe trumpet clarinet"),
    "season": ("snow frost ice blizzard", "blossom bud nest lamb", "sunburn beach heatwave sandal"),
    "law": ("judge court lawyer verdict", "teacher pupil lesson exam", "priest chapel hymn prayer"),
    "sport": ("goalkeeper football penalty striker", "racket tennis serve umpire", "swimmer pool dive lane"),
    "food": ("steak sausage bacon ham", "cake biscuit jam honey", "lettuce spinach carrot leek"),
    "wheels": ("lorry van bus taxi", "bicycle scooter pedal tricycle", "train locomotive wagon carriage"),
    "screen": ("keyboard laptop modem server", "camera lens tripod film", "kettle oven toaster fridge"),
}
_ATOMS, _ACIDS = "C C C c ( ) = 1 2", "A G L V S T Y D"
_CHEMISTRY: Final = {
    "hetero": "N O S", "halogen": "F Cl Br", "ring": "o s n", "late": "Br S N", "double": "C.N C.O C.S",
    "pair": "N.N O.O S.S", "mixed": "F O n", "acid": "O.O N.O S.O", "charge": "Cl N o", "chain": "F.C Br.C Cl.C",
}  # fmt: skip
_ANTIBODIES: Final = {
    "basic": "K R H", "ring": "F W P", "polar": "N Q E", "sulphur": "C M W", "turn": "P G.G N.G",
    "double": "K.K R.R H.H", "mixed": "K E W", "site": "N.S N.T N.Y", "pair": "C.C M.M W.W", "edge": "I H Q",
}  # fmt: skip

ENGLISH: Final[Mapping[str, Task]] = {name: Task(_sentence(words)) for name, words in _SENTENCES.items()}
CHEMISTRY: Final[Mapping[str, Task]] = {name: Task(_marked(_ATOMS, marks)) for name, marks in _CHEMISTRY.items()}
ANTIBODIES: Final[Mapping[str, Task]] = {name: Task(_marked(_ACIDS, marks)) for name, marks in _ANTIBODIES.items()}
