"""The playground's engine: choices side by side on one base, streamed, cancelled, bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import adapterhub
from adapterhub.core.errors import AdapterHubError, Conflict, UsageProblem
from adapterhub.inference.answering import Typed
from adapterhub.inference.generation import Question
from adapterhub.inference.loader.text import load_base
from adapterhub.inference.playground import Answering, Begun, Ended, Event, Piece, Playground, PlaygroundBounds
from tests.support.command_line import Adapt
from tests.support.run_library import PROMPT, alone, make_library

pytestmark = pytest.mark.filterwarnings("ignore")
RAW = Typed(chat=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def playground(made: Path) -> Iterator[Playground]:
    library = adapterhub.Library(Adapt(made).library.root)
    with library.playground() as playground:
        yield playground


def texts_of(events: Sequence[Event]) -> list[str]:
    """The text of each answer, which its pieces spell."""
    ended = {event.at: event for event in events if isinstance(event, Ended)}
    spelled = {at: "".join(e.text for e in events if isinstance(e, Piece) and e.at == at) for at in ended}
    whole = {at: event.answer.text if event.answer else "" for at, event in ended.items()}
    assert spelled == whole
    return [whole[at] for at in sorted(whole)]


def test_answers_side_by_side_are_those_of_each_alone(playground: Playground, made: Path) -> None:
    choices = [{"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": 0.5}, {}]

    events = list(playground.ask(choices, PROMPT, typed=RAW, max_new_tokens=12))

    model = load_base(made / "base")
    assert isinstance(events[0], Begun)
    assert events[0].labels == ("a", "b", "0.5 x a + 0.5 x b", "none")
    assert texts_of(events) == [alone(made, model, choice, Question(text=PROMPT)) for choice in choices]
    turns = [event.at for event in events if isinstance(event, Piece)]
    assert turns != sorted(turns)  # they write at the same time


def test_what_cannot_share_a_batch_answers_by_itself(playground: Playground, made: Path) -> None:
    choices = [{"a": 1.0}, {"dora": 1.0}, {"dora": 0.5}, {"nothing": 1.0}]

    events = list(playground.ask(choices, PROMPT, typed=RAW, max_new_tokens=6))

    problems = {event.at: event.problem for event in events if isinstance(event, Ended)}
    model = load_base(made / "base")
    assert texts_of(events)[:2] == [alone(made, model, c, Question(text=PROMPT), 6) for c in choices[:2]]
    assert (problems[0], problems[1]) == ("", "")
    assert "DoRA" in problems[2]
    assert "nothing" in problems[3]


def test_leaving_ends_the_writing_and_frees_the_base(playground: Playground) -> None:
    answering = playground.ask([{"a": 1.0}, {}], "Hi", typed=RAW, max_new_tokens=240)

    events: list[Event] = []
    for event in answering:
        events.append(event)
        if isinstance(event, Piece):
            answering.cancel()
    ends = [event for event in events if isinstance(event, Ended)]
    model = playground._model

    assert model is not None
    assert {event.why for event in ends} == {"cancelled"}
    assert all(event.answer and event.answer.tokens < 240 for event in ends)
    assert len(texts_of(list(playground.ask([{}], "Hi", typed=RAW, max_new_tokens=3)))) == 1
    assert playground._model is model  # loaded once


def test_time_is_bounded(made: Path) -> None:
    library = adapterhub.Library(Adapt(made).library.root)
    with library.playground(bounds=PlaygroundBounds(seconds=0.0)) as playground:
        (ended,) = [e for e in playground.ask([{}], "Hi", typed=RAW, max_new_tokens=200) if isinstance(e, Ended)]

    assert (ended.why, ended.answer and ended.answer.tokens) == ("time", 1)


@pytest.mark.parametrize(
    ("choices", "prompt", "tokens", "said"),
    [
        ([], "Hi", 5, "0 choices"),
        ([{"a": at} for at in (0.1, 0.2, 0.3, 0.4, 0.5)], "Hi", 5, "5 choices"),
        ([{"a": 1.0}, {"a": 1.0}], "Hi", 5, "chosen twice"),
        ([{}], " ", 5, "empty"),
        ([{}], "x" * 1_000_000, 5, "1,000,000 characters"),
        ([{}], "Hi", 100_000, "100,000 new tokens"),
        ([{}], "Hi" * 150, 5, "300 tokens"),
        ([{"a": 1e300}], "Hi", 5, "weight"),
    ],
)
def test_what_is_too_much_is_refused(
    playground: Playground, choices: list[dict[str, float]], prompt: str, tokens: int, said: str
) -> None:
    try:
        events = list(playground.ask(choices, prompt, typed=RAW, max_new_tokens=tokens))
        problem = next(event.problem for event in events if isinstance(event, Ended))
    except UsageProblem as error:
        problem = error.message

    assert said in problem


def test_few_questions_wait(made: Path) -> None:
    library = adapterhub.Library(Adapt(made).library.root)
    with library.playground(bounds=PlaygroundBounds(waiting=2)) as playground:
        open_ones = [playground.ask([{}], "Hi", typed=RAW, max_new_tokens=200) for _ in range(2)]
        with pytest.raises(Conflict, match="2 questions"):
            playground.ask([{}], "Hi")
        open_ones[1].cancel()
        first = list(open_ones[0])
        open_ones[1].wait()
        again = list(playground.ask([{}], "Hi", typed=RAW, max_new_tokens=3))

    assert [len(texts_of(events)) for events in (first, again)] == [1, 1]
    assert list(open_ones[1]) == []


def test_a_failure_reaches_the_reader() -> None:
    def fail(_answering: Answering) -> None:
        raise AdapterHubError("it broke")

    answering = Answering(fail)
    answering.start()

    with pytest.raises(AdapterHubError, match="it broke"):
        list(answering)
