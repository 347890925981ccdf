"""Tokens to text: nothing lost, no character cut, nothing of a stop string given out, and little held back."""

from __future__ import annotations

import codecs
import itertools
import pickle
import subprocess
import sys
import time
import unicodedata
from collections.abc import Collection, Iterator, Sequence

import pytest
import regex
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from ayaedge.bundle import demo_bundle, read_bundle
from ayaedge.decoder.vocabulary import Vocabulary, open_vocabulary
from ayaedge.text.text_stream import Piece, TextStream, TokenLogprob

LONGEST_CLUSTER = 64
LONGEST_WAIT = 256

FAMILY = "\U0001f468\u200d\U0001f469\U0001f3fd\u200d\U0001f467\u200d\U0001f466"
WALES = "\U0001f3f4\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f"
ZALGO = "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324a\u030a\u036f\u0347\u0321l\u034d\u0489"
TEXTS = {
    "arabic": "السَّلامُ عَلَيْكُم، كَيْفَ الحالُ؟\nبِخَيْر.",
    "hebrew": "שָׁלוֹם, מַה שְּׁלוֹמֵךְ?\u200f (12)\u200e",
    "hindi": "नमस्ते! क्षत्रिय ज्ञान, श्री ह्रस्व — स्त्री\u200dक्\u200dष।",
    "tamil": "வணக்கம், நீங்கள் எப்படி இருக்கிறீர்கள்? ஸ்ரீ",
    "thai": "สวัสดีครับ กำลังทำอยู่ที่นี่",
    "khmer": "សួស្តី! ភាសាខ្មែរ ស្ត្រី",
    "korean": unicodedata.normalize("NFD", "안녕하세요, 값이 얼마예요?") + " 각",
    "vietnamese": unicodedata.normalize("NFD", "Tiếng Việt: Nguyễn, được, trưởng"),
    "japanese": "こんにちは。\u304b\u3099ラーメン、渡邉\U000e0101さん\r\n終わり",
    "emoji": f"a{FAMILY}{FAMILY}\U0001f44b\U0001f3fe!\u2764\ufe0f\u200d\U0001f525 {WALES}\u00a9\ufe0f",
    "flags": "x\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7\U0001f1fb\U0001f1f3\U0001f1ee",
    "keycaps": "1\ufe0f\u20e32\ufe0f\u20e33 #\ufe0f\u20e3",
    "zalgo": ZALGO + " e" + "\u0301\u0323" * 15 + " " + ZALGO,
    "controls": "\ufeffa\0b\u202eabc\u202c\u2066x\u2069\u061c\u0600١٢\r\n\r\n\n\u0301\r\u0301\t\x1b\u2028é",
}
CHARACTERS = sorted({*"".join(TEXTS.values())})

texts = st.one_of(
    st.lists(st.sampled_from(list(TEXTS.values())), max_size=2).map("".join),
    st.text(st.sampled_from(CHARACTERS), max_size=40),
    st.text(max_size=20),
)
thorough = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
UTF8_PARTS = (
    b"a \n \r \0 \x80 \x9f \xa0 \xbf \xc3 \xe0 \xe2\x82 \xed \xf0 \xf0\x9f "
    b"\xf0\x9f\x91 \xf4 \xf5 \xff \xcc\x81 \n\xe2"
).split(b" ")
UTF8_PARTS += [b"", b" ", b"\xe2\x80\x8d"]
byte_tokens = st.lists(st.one_of(st.sampled_from(UTF8_PARTS), st.binary(max_size=4)), max_size=30)


@st.composite
def tokenised(draw: st.DrawFn, whole: st.SearchStrategy[str] = texts) -> list[bytes]:
    """A text, cut at random bytes."""
    data = draw(whole).encode()
    cuts = draw(st.sets(st.integers(0, len(data))))
    return cut(data, cuts)


def cut(data: bytes, places: Collection[int]) -> list[bytes]:
    return [data[begin:end] for begin, end in itertools.pairwise(sorted({0, len(data), *places}))]


def pieces_of(
    tokens: Sequence[bytes], *, hidden: Collection[int] = (), stop: Sequence[str] = ()
) -> list[Piece]:
    """What comes out of tokens whose ids are their places."""
    stream = TextStream(tokens.__getitem__, hidden=hidden, stop=stop)
    pieces = []
    for token in range(len(tokens)):
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    return [piece for piece in pieces if piece is not None]


def decoded(tokens: Sequence[bytes]) -> str:
    return b"".join(tokens).decode("utf-8", "replace")


def complete_text(tokens: Sequence[bytes]) -> tuple[str, bool]:
    """The complete characters, and whether bytes of an incomplete one follow."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(b"".join(tokens)), bool(decoder.getstate()[0])


def spellings(stops: Sequence[str]) -> list[str]:
    return [*stops, *(unicodedata.normalize(form, stop) for stop in stops for form in ("NFC", "NFD"))]


def cluster_borders(text: str) -> set[int]:
    return {0, *(cluster.end() for cluster in regex.finditer(r"\X", text))}


def no_absurd_cluster(text: str) -> bool:
    return all(len(cluster) <= LONGEST_CLUSTER for cluster in regex.findall(r"\X", text))


def piece_borders(pieces: Sequence[str]) -> set[int]:
    return {0, *itertools.accumulate(len(piece) for piece in pieces)}


def first_stop(text: str, stops: Sequence[str]) -> int:
    return min((place for place in (text.find(stop) for stop in stops) if place >= 0), default=len(text))


def first_candidate(text: str, stops: Sequence[str]) -> int:
    """The first place from which on the text could still become a stop string."""
    return next(
        place
        for place in range(len(text) + 1)
        if place == len(text) or any(stop.startswith(text[place:]) for stop in stops)
    )


# Nothing lost, nothing changed


@thorough
@given(byte_tokens)
@example([b"\xe2", b"\x41"])
@example([b"\xf0\x9f", b"\x91\xf0", b"", b"\x9f\x91\xa8"])
def test_pieces_join_to_what_decoding_at_once_gives(tokens: list[bytes]) -> None:
    assert "".join(pieces_of(tokens)) == decoded(tokens)


def test_every_short_run_of_bytes_comes_out_as_python_replaces_it() -> None:
    kinds = b"\0A\x80\x8f\x90\x9f\xa0\xbf\xc1\xc2\xe0\xe2\xed\xef\xf0\xf3\xf4\xf5"
    for run in itertools.product(kinds, repeat=3):
        tokens = [bytes([byte]) for byte in run]
        assert "".join(pieces_of(tokens)) == decoded(tokens)


@thorough
@given(byte_tokens | tokenised(), st.data())
def test_a_piece_is_the_text_of_its_tokens_and_every_visible_token_is_in_one(
    tokens: list[bytes], data: st.DataObject
) -> None:
    hidden = data.draw(st.sets(st.integers(0, max(0, len(tokens) - 1))))
    pieces = pieces_of(tokens, hidden=hidden)
    visible = [token for token in range(len(tokens)) if token not in hidden]
    assert [token for piece in pieces for token in piece.ids] == visible
    assert "".join(pieces) == decoded([tokens[token] for token in visible])
    assert all(pieces[:-1])
    for piece in pieces:
        assert piece == decoded([tokens[token] for token in piece.ids])


@pytest.mark.parametrize("script", TEXTS)
def test_characters_in_single_bytes_come_out_whole(script: str) -> None:
    pieces = pieces_of([bytes([byte]) for byte in TEXTS[script].encode()])
    assert pieces == regex.findall(r"\X(?:(?<!\n)\n)?", TEXTS[script])  # a line break does not wait


# Clusters


@settings(thorough, max_examples=300)
@given(tokenised())
def test_no_piece_ends_inside_a_cluster_of_the_whole_text(tokens: list[bytes]) -> None:
    assume(no_absurd_cluster(decoded(tokens)))
    assert piece_borders(pieces_of(tokens)) <= cluster_borders(decoded(tokens))


@settings(thorough, max_examples=300)
@given(byte_tokens | tokenised(), st.data())
def test_text_is_held_back_no_longer_than_it_must_be(tokens: list[bytes], data: st.DataObject) -> None:
    """After every token, what came out is the longest run of whole tokens that nothing to come can change."""
    assume(no_absurd_cluster(decoded(tokens)))
    stops = data.draw(stops_for(decoded(tokens)))
    stream, given_out, whole = TextStream(tokens.__getitem__, stop=stops), "", {0}
    for token in range(len(tokens)):
        given_out += stream.push(token) or ""
        if stream.stopped:
            break
        shown, unfinished = complete_text(tokens[: token + 1])
        if not unfinished:
            whole.add(len(shown))
        certain = {
            place
            for place in whole & cluster_borders(shown)
            if place < len(shown) or shown.endswith("\n")  # the latter does not wait
        }
        held_from = first_candidate(shown, spellings(stops))
        assert given_out == shown[: max(place for place in {0, *certain} if place <= held_from)]


def test_a_line_break_at_the_end_of_a_token_is_not_waited_for() -> None:
    stream = TextStream([b"a\n", b"\r", b"\n", b"b"].__getitem__)
    assert [stream.push(token) for token in range(4)] == ["a\n", None, "\r\n", None]
    assert stream.finish() == "b"


def test_no_text_comes_out_of_a_token_whose_last_character_is_incomplete() -> None:
    pieces = pieces_of([b"a", b"b\n\xe2", b"\x82\xac", b"c"])
    assert [(piece, piece.ids) for piece in pieces] == [("a", (0,)), ("b\n€", (1, 2)), ("c", (3,))]


def test_tokens_stay_whole_far_into_an_answer() -> None:
    assert pieces_of([b"ab", "\u0301".encode(), b" "] * LONGEST_WAIT) == ["ab\u0301", " "] * LONGEST_WAIT


def test_hidden_tokens_neither_cut_a_cluster_nor_show_that_it_is_complete() -> None:
    tokens = [b"e", b"<hidden>", "\u0301".encode()[:1], b"<hidden>", "\u0301".encode()[1:], b"x"]
    stream = TextStream(tokens.__getitem__, hidden={1, 3})
    pieces = [stream.push(token) for token in range(6)]
    assert pieces == [None] * 5 + ["e\u0301"]
    assert pieces[5] is not None and pieces[5].ids == (0, 2, 4)


# Stop strings


@st.composite
def stops_for(draw: st.DrawFn, text: str) -> list[str]:
    """Strings of which some occur in the text and some only begin to."""
    stops = draw(st.lists(st.text(min_size=1, max_size=3), max_size=1))
    for _ in range(draw(st.integers(0, 2)) if text else 0):
        begin = draw(st.integers(0, len(text) - 1))
        stops.append(text[begin : begin + draw(st.integers(1, 8))] + draw(st.sampled_from(["", "", "!"])))
    return stops


def check_stop(tokens: list[bytes], stops: list[str]) -> None:
    """Against looking at the whole text: what comes out at any time, in the end, and of which tokens."""
    text = decoded(tokens)
    end = first_stop(text, spellings(stops))
    stream = TextStream(tokens.__getitem__, stop=stops)
    pieces = [
        stream.push(token) for token in itertools.takewhile(lambda _: not stream.stopped, range(len(tokens)))
    ]
    pieces.append(stream.finish())
    assert "".join(piece for piece in pieces if piece) == text[:end]
    assert stream.stopped == (end < len(text))
    ids = [token for piece in pieces if piece is not None for token in piece.ids]
    if not stream.stopped:
        assert ids == list(range(len(tokens)))
        return
    before = []
    for token in range(len(tokens)):
        shown, unfinished = complete_text(tokens[: token + 1])
        if len(shown) < end or (len(shown) == end and not unfinished):
            before.append(token)
    assert ids == before


@settings(thorough, max_examples=300)
@given(byte_tokens | tokenised(), st.data())
def test_text_ends_before_the_stop_string_that_begins_first(tokens: list[bytes], data: st.DataObject) -> None:
    check_stop(tokens, data.draw(stops_for(decoded(tokens))))


@settings(thorough, max_examples=500)
@given(
    st.lists(st.text("ab", max_size=4).map(str.encode), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=3),
)
@example([b"abcd", b"x"], ["abcdef", "cd"])
@example([b"abcd"], ["abcdef", "cd"])
@example([b"aab", b"aabaac"], ["aabaac", "ba"])
def test_stop_strings_that_overlap_themselves_and_each_other(tokens: list[bytes], stops: list[str]) -> None:
    check_stop(tokens, stops)


@pytest.mark.parametrize(
    "stop", ["END", "。終", "\n\n", "शान्ति", FAMILY, "\u1112\u1161\u11ab", "\U0001f1e9\U0001f1ea"]
)
def test_a_stop_string_is_found_wherever_tokens_cut_it(stop: str) -> None:
    data = f"a é{stop} behind".encode()
    for size in range(4):
        for places in itertools.combinations(range(3, len(data)), size) if size < 3 else [range(len(data))]:
            check_stop(cut(data, places), [stop])


@thorough
@given(tokenised(), st.data())
def test_nothing_of_a_stop_string_is_ever_given_out(tokens: list[bytes], data: st.DataObject) -> None:
    """Also not of one that is incomplete so far, whatever comes next."""
    stops = data.draw(stops_for(decoded(tokens)))
    stream, given_out = TextStream(tokens.__getitem__, stop=stops), 0
    for token in range(len(tokens)):
        given_out += len(stream.push(token) or "")
        shown = complete_text(tokens[: token + 1])[0]
        assert given_out <= first_stop(shown, spellings(stops))
        if stream.stopped:
            break
        assert given_out <= first_candidate(shown, spellings(stops))


def test_half_a_stop_string_at_the_end_is_text() -> None:
    assert pieces_of([b"a", b" EN"], stop=["END"]) == ["a", " EN"]


def test_a_stop_string_waits_for_one_that_may_begin_before_it() -> None:
    tokens = [b"abcd", b"ef", b"gh"]
    stream = TextStream(tokens.__getitem__, stop=["abcdeg", "cd"])
    assert stream.push(0) is None and not stream.stopped
    assert stream.push(1) == "ab" and stream.stopped
    assert stream.finish() is None
    stream = TextStream(tokens.__getitem__, stop=["abcdeg", "cd"])
    assert stream.push(0) is None
    assert stream.finish() == "ab" and stream.stopped


@pytest.mark.parametrize(
    ("text", "stop", "came"),
    [
        ("one two", ["w", "x"], "w"), ("abcde", ["cd", "abcdeg"], "cd"), ("xabcdeg", ["cd", "abcdeg"], "abcdeg"),
        ("aab", ["b", "ab", "aab"], "aab"), ("caf\u00e9.", ["fe\u0301"], "fe\u0301"), ("one", ["two"], None),
        ("\u00e9", ["e\u0301", "\u00e9"], "\u00e9"),
    ],
)  # fmt: skip
def test_the_stop_string_that_came_is_named_as_it_was_given(
    text: str, stop: list[str], came: str | None
) -> None:
    tokens = [bytes([byte]) for byte in text.encode()]
    stream = TextStream(tokens.__getitem__, stop=stop)
    for token in range(len(tokens)):
        if not stream.stopped:
            stream.push(token)
    stream.finish()
    assert stream.stop_string == came


def test_a_token_that_a_stop_string_cuts_gives_text_but_is_in_no_piece() -> None:
    pieces = pieces_of([b"one", b" two", b".\nQ", b":"], stop=["\nQ:"])
    assert [(piece, piece.ids) for piece in pieces] == [("one", (0,)), (" two", (1,)), (".", ())]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("of_output", ["NFC", "NFD"])
@pytest.mark.parametrize("stop", ["Fin de réponse", "끝", "Đáp án: được"])
def test_composed_and_decomposed_stop_strings_are_the_same(stop: str, form: str, of_output: str) -> None:
    text = unicodedata.normalize(of_output, f"é {stop}. é")  # type: ignore[arg-type]
    tokens = cut(text.encode(), range(0, 99, 2))
    given_stop = unicodedata.normalize(form, stop)  # type: ignore[arg-type]
    assert "".join(pieces_of(tokens, stop=[given_stop])) == unicodedata.normalize(of_output, "é ")  # type: ignore[arg-type]


def test_a_stop_string_is_found_as_it_is_typed_though_normalising_reorders_its_marks() -> None:
    typed = "تمَّ".replace("\u064e\u0651", "\u0651\u064e")
    assert typed not in {unicodedata.normalize("NFC", typed), unicodedata.normalize("NFD", typed)}
    assert "".join(pieces_of([f"x {typed} y".encode()], stop=[typed])) == "x "


def test_hidden_tokens_do_not_break_a_stop_string() -> None:
    pieces = pieces_of([b"a ST", b"<hidden>", b"OP", b" b"], hidden={1}, stop=["STOP"])
    assert pieces == ["a "] and pieces[0].ids == ()


def test_nothing_is_pushed_behind_the_end() -> None:
    stopped = TextStream([b"x"].__getitem__, stop=["x"])
    assert stopped.push(0) is None and stopped.stopped
    ended = TextStream([b"x"].__getitem__)
    assert ended.finish() is None
    for stream in (stopped, ended):
        assert stream.finish() is None
        with pytest.raises(AssertionError):
            stream.push(0)


# Probabilities


@thorough
@given(byte_tokens | tokenised(), st.data())
def test_probabilities_go_with_their_tokens(tokens: list[bytes], data: st.DataObject) -> None:
    hidden = data.draw(st.sets(st.integers(0, max(0, len(tokens) - 1))))
    stream = TextStream(tokens.__getitem__, hidden=hidden, stop=data.draw(stops_for(decoded(tokens))))
    pieces = []
    for token in range(len(tokens)):
        pieces.append(stream.push(token, TokenLogprob(token, tokens[token], -0.5 * token)))
        if stream.stopped:
            break
    for piece in [*pieces, stream.finish()]:
        if piece is not None:
            assert piece.logprobs == tuple(
                TokenLogprob(token, tokens[token], -0.5 * token) for token in piece.ids
            )


def test_parts_of_a_character_belong_to_the_piece_in_which_it_comes_out() -> None:
    tokens = [b"a", b"\xe2", b"\x82", b"\xac", b"b"]
    assert [(piece, piece.ids) for piece in pieces_of(tokens)] == [("a", (0,)), ("€", (1, 2, 3)), ("b", (4,))]


def test_a_piece_is_a_string_that_keeps_its_tokens() -> None:
    probability = TokenLogprob(3, b"h\xc3", -0.1, top=(TokenLogprob(4, b"h", -0.2),))
    assert probability.text == "h\ufffd"
    piece = Piece("hé", [3, 5], [probability])
    assert piece == "hé" and isinstance(piece, str) and type(piece.text) is str and piece.text == "hé"
    copy = pickle.loads(pickle.dumps(piece))
    assert (copy, copy.ids, copy.logprobs) == ("hé", (3, 5), (probability,))
    assert (Piece("x").ids, Piece("x").logprobs) == ((), ())


# Bounds


ENDLESS = {
    "marks": ["\u0301".encode()],
    "marks in bytes": [b"\xcc", b"\x81"],
    "joined emoji": ["\U0001f468".encode(), "\u200d".encode()],
    "tokens that end inside a character": [b"\x82\xac\xe2"],
    "tokens that end inside a mark": [b"\x81\xcc"],
    "marks that begin a token": ["\u0301a".encode()],
    "no bytes": [b"a", *[b""] * 9],
    "letters": [b"ab", b" c"],
    "a stop string that never ends": [b"stop", b"ba", b"stopp"],
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_little_is_held_however_long_the_answer(kind: str) -> None:
    """Work per token is in proportion to what is held, so it is bounded too."""
    tokens = ENDLESS[kind] * (5000 // len(ENDLESS[kind]))
    stream, given_out, text = TextStream(tokens.__getitem__, stop=["stopstop"]), 0, ""
    started = time.process_time()
    for token in range(len(tokens)):
        if piece := stream.push(token):
            text, given_out = text + piece, given_out + len(piece.ids)
        assert token - given_out <= 2 * LONGEST_WAIT
    assert time.process_time() - started < 5  # it takes 0.1 s
    assert text + (stream.finish() or "") == decoded(tokens)


def test_the_longest_cluster_in_single_bytes_cuts_no_token() -> None:
    cluster = "bb" + "\U0001e947" * (LONGEST_CLUSTER - 2)  # marks of four bytes
    tokens = [cluster[:2].encode(), *cut(cluster[2:].encode(), range(999)), b"."]
    assert [(piece, len(piece.ids)) for piece in pieces_of(tokens)] == [(cluster, len(tokens) - 1), (".", 1)]


def test_a_cluster_that_is_no_writing_is_split() -> None:
    pieces = pieces_of([b"a", *["\u0301".encode()] * 200])
    assert [len(piece) for piece in pieces] == [65, 65, 65, 6]


def test_the_types_can_be_imported_without_the_segmentation() -> None:
    code = "import sys, ayaedge.text.text_stream; sys.exit('regex' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Real tokens


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    with open_vocabulary(read_bundle(demo_bundle()).decoder_path) as opened:
        yield opened


@pytest.mark.parametrize("script", TEXTS)
def test_tokens_of_the_demonstration_model(script: str, vocabulary: Vocabulary) -> None:
    text = TEXTS[script]
    ids = vocabulary.tokenize(text)
    stream = TextStream(vocabulary.piece)
    pieces = [piece for piece in [*map(stream.push, ids), stream.finish()] if piece is not None]
    assert "".join(pieces) == text
    assert [token for piece in pieces for token in piece.ids] == ids
    assert piece_borders(pieces) <= cluster_borders(text)


@pytest.mark.parametrize("script", TEXTS)
def test_stop_strings_in_tokens_of_the_demonstration_model(script: str, vocabulary: Vocabulary) -> None:
    text = TEXTS[script]
    tokens = [vocabulary.piece(token) for token in vocabulary.tokenize(text)]
    for begin in range(len(text)):
        check_stop(tokens, [text[begin : begin + 4]])
