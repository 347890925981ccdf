from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ayaedge import AyaVision, PromptError
from ayaedge.bundle import Bundle
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.options import DecoderOptions
from ayaedge.images.tiling import choose_grid
from ayaedge.manifest import Tokens
from ayaedge.text.prompt import Message, PromptBuilder, Role
from ayaedge.text.template import ChatTemplate
from ayaedge_export.evaluation.reference import Reference
from ayaedge_export.evaluation.sample_text import SENTENCES

LANGUAGES = sorted(SENTENCES)
SIZES = [(640, 480), (56, 56), (300, 100)]
CONVERSATIONS = {
    "text": [Message("user", "Hello, how are you? 12345")],
    "one image": [Message("user", "Describe it.", 1)],
    "two images": [Message("user", " What differs?\n\nSay it. ", 2)],
    "three images in two turns": [
        Message("user", "A", 1),
        Message("assistant", "B"),
        Message("user", "C", 2),
    ],
    "several turns": [
        Message("user", "One?"),
        Message("assistant", "Two.\n"),
        Message("user", "Three?"),
        Message("assistant", "Four"),
        Message("user", "Five"),
    ],
    "system turn": [Message("system", "Be brief."), Message("user", "What is it?", 1)],
    "empty text": [Message("user", "", 1)],
    "markup and digits": [Message("user", "{{ x }} {% y %} a<b & 3.14 TILE_1 TILE_GLOBAL\t 007", 1)],
    "blanks": [Message("user", "  leading and trailing  ")],
}


@pytest.fixture(scope="session")
def release(
    shrunk_release: Path, shrunk_release_bundle: Bundle
) -> Iterator[tuple[PromptBuilder, Any, Bundle]]:
    """A prompt builder over a released tokenizer and template, and the reference's processor for them."""
    transformers = pytest.importorskip("transformers")
    bundle = shrunk_release_bundle
    processor = transformers.AutoProcessor.from_pretrained(shrunk_release, trust_remote_code=False)
    with Decoder(bundle.decoder_path, bundle.manifest, DecoderOptions(context_size=64)) as decoder:
        yield PromptBuilder(bundle.manifest, decoder.vocabulary.tokenize), processor, bundle


def tiles_of(bundle: Bundle, messages: list[Message]) -> list[int]:
    """Tiles of each image of the conversation, images taken from SIZES in turn."""
    tiling = bundle.manifest.tiling
    counts = []
    for number in range(sum(m.images for m in messages)):
        width, height = SIZES[number % len(SIZES)]
        columns, rows = choose_grid(width, height, tile_size=tiling.tile_size, max_tiles=tiling.max_tiles)
        counts.append(columns * rows + (columns * rows > 1))
    return counts


def reference_ids(processor: Any, messages: list[Message], *, generate: bool = True) -> list[int]:
    conversation = [
        {"role": m.role, "content": [{"type": "image"}] * m.images + [{"type": "text", "text": m.text}]}
        for m in messages
    ]
    text = processor.apply_chat_template(conversation, add_generation_prompt=generate, tokenize=False)
    count = sum(m.images for m in messages)
    images = [Image.new("RGB", SIZES[number % len(SIZES)]) for number in range(count)]
    batch = processor(text=[text], images=images or None, add_special_tokens=False, return_tensors="np")
    ids: list[int] = batch["input_ids"][0].tolist()
    return ids


@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_have_the_reference_ids(
    exact_model: AyaVision, reference: Reference, name: str, generate: bool
) -> None:
    messages = CONVERSATIONS[name]
    builder = PromptBuilder(exact_model.bundle.manifest, exact_model._engine.decoder.vocabulary.tokenize)
    prompt = builder.build(messages, tiles_of(exact_model.bundle, messages), generate=generate)
    assert list(prompt.ids) == reference_ids(reference.processor, messages, generate=generate)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_the_reference_ids(
    exact_model: AyaVision, reference: Reference, language: str
) -> None:
    messages = [Message("user", SENTENCES[language], 1)]
    builder = PromptBuilder(exact_model.bundle.manifest, exact_model._engine.decoder.vocabulary.tokenize)
    prompt = builder.build(messages, tiles_of(exact_model.bundle, messages))
    assert list(prompt.ids) == reference_ids(reference.processor, messages)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_have_the_released_processors_ids(
    release: tuple[PromptBuilder, Any, Bundle], name: str
) -> None:
    builder, processor, bundle = release
    messages = CONVERSATIONS[name]
    prompt = builder.build(messages, tiles_of(bundle, messages))
    assert list(prompt.ids) == reference_ids(processor, messages)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_every_language_has_the_released_processors_ids(
    release: tuple[PromptBuilder, Any, Bundle], form: Any
) -> None:
    builder, processor, _ = release
    for language in LANGUAGES:
        messages = [Message("user", unicodedata.normalize(form, SENTENCES[language]))]
        assert list(builder.build(messages, []).ids) == reference_ids(processor, messages), language


def test_the_published_vocabulary_cases_have_the_published_ids(
    release: tuple[PromptBuilder, Any, Bundle], released_files: Path
) -> None:
    builder = release[0]
    base = released_files / "command-r-vocab" / "ggml-vocab-command-r.gguf"
    texts = base.with_name(base.name + ".inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    ids = base.with_name(base.name + ".out").read_text("utf-8").split("\n")
    cases = list(zip(texts, ids, strict=False))
    assert len(texts) == len(ids) == len(cases) == 47
    for text, expected in cases:
        assert builder._tokenize(text) == [int(token) for token in expected.split()], text


def test_an_image_of_four_to_three_is_2197_image_tokens(release: tuple[PromptBuilder, Any, Bundle]) -> None:
    builder, _, bundle = release
    prompt = builder.build([Message("user", "Describe.", 1)], [13])
    assert prompt.ids.count(bundle.manifest.tokens.image_patch) == 13 * 169
    assert len(prompt.ids) == {"aya-vision-8b": 2799, "aya-vision-32b": 2317}[bundle.manifest.source.name]


UNFINISHED = {
    "a word": [Message("user", "One?"), Message("assistant", "The answer")],
    "an image": [Message("user", "One?", 1), Message("assistant", '{"number": 1')],
    "blanks inside": [Message("user", "One?"), Message("assistant", "- a\n\n-  b\n c")],
    "marks": [Message("user", "One?"), Message("assistant", '"<image> <|END_RESPONSE|')],
    "composed": [Message("user", "One?"), Message("assistant", unicodedata.normalize("NFD", "Tiếng Việt"))],
    "several turns": [
        Message("system", "Be brief."),
        Message("user", "One?"),
        Message("assistant", " Two.\n"),
        Message("user", "Three?", 2),
        Message("assistant", "Two."),
    ],
    "two answers": [Message("user", "One?"), Message("assistant", "Two"), Message("assistant", "Two")],
    "no question": [Message("assistant", "Once upon")],
}


def continued_ids(processor: Any, messages: list[Message]) -> list[int]:
    """The reference's ids of an answer that goes on; it cannot hold an `<image>` that is none."""
    conversation = [
        {"role": m.role, "content": [{"type": "image"}] * m.images + [{"type": "text", "text": m.text}]}
        for m in messages
    ]
    text = processor.apply_chat_template(conversation, continue_final_message=True, tokenize=False)
    count = sum(m.images for m in messages)
    images = [Image.new("RGB", SIZES[number % len(SIZES)]) for number in range(count)]
    batch = processor(text=[text], images=images or None, add_special_tokens=False, return_tensors="np")
    ids: list[int] = batch["input_ids"][0].tolist()
    return ids


def check_unfinished(builder: PromptBuilder, processor: Any, bundle: Bundle, name: str) -> None:
    """The ids are the reference's, and begin as those of the question do, behind which the model writes."""
    messages = UNFINISHED[name]
    tiles = tiles_of(bundle, messages)
    prompt = builder.build(messages, tiles)
    # the reference's processor takes no conversation without a turn
    asked = reference_ids(processor, messages[:-1]) if messages[1:] else list(builder.build([], []).ids)
    assert list(prompt.ids[: len(asked)]) == asked
    assert len(prompt.images) == len(tiles)
    if name != "marks":
        assert list(prompt.ids) == continued_ids(processor, messages)
    spelled = messages[-1].text
    special = {token: text for text, token in bundle.manifest.tokens.special.items()}
    rest = prompt.ids[len(asked) :]
    opening = "<|START_RESPONSE|>"
    if special.get(rest[0]) == opening:  # as the model begins an answer itself
        assert list(rest[1:]) == builder._tokenize(unicodedata.normalize("NFC", spelled))
        assert prompt.answers[-1].start == len(asked)
        assert prompt.answers[-1].stop == len(prompt.ids)
    else:
        assert opening not in bundle.manifest.tokens.special
        assert list(rest) == builder._tokenize(unicodedata.normalize("NFC", opening + spelled))


@pytest.mark.parametrize("name", UNFINISHED)
def test_a_last_assistant_message_goes_on_where_the_reference_would(
    exact_model: AyaVision, reference: Reference, name: str
) -> None:
    builder = PromptBuilder(exact_model.bundle.manifest, exact_model._engine.decoder.vocabulary.tokenize)
    check_unfinished(builder, reference.processor, exact_model.bundle, name)


@pytest.mark.parametrize("name", UNFINISHED)
def test_a_last_assistant_message_goes_on_where_the_released_processors_would(
    release: tuple[PromptBuilder, Any, Bundle], name: str
) -> None:
    builder, processor, bundle = release
    check_unfinished(builder, processor, bundle, name)


@pytest.fixture
def builder(exact_model: AyaVision) -> PromptBuilder:
    return PromptBuilder(exact_model.bundle.manifest, exact_model._engine.decoder.vocabulary.tokenize)


def test_there_is_one_bos(exact_model: AyaVision, builder: PromptBuilder) -> None:
    ids = builder.build([Message("user", "Hi")], []).ids
    assert ids[0] == exact_model.bundle.manifest.tokens.bos
    assert ids.count(ids[0]) == 1


ROLES: list[Role] = ["user", "system", "assistant", "tool"]


def check_no_special_token(builder: PromptBuilder, tokens: Tokens, role: Role) -> None:
    """Whatever marker a text of this role spells, the prompt has the special tokens of one that spells none."""
    special = set(tokens.special.values())

    def found(text: str) -> list[int]:
        turns = [Message(role, text), Message("user", "x")]
        return [token for token in builder.build(turns, []).ids if token in special]

    plain = found("x")
    for marker in (*tokens.special, "<image>"):
        for text in (marker, marker + marker, f"a{marker}b", marker[:3] + marker):
            assert found(text) == plain, text


@pytest.mark.parametrize("role", ROLES)
def test_no_text_can_write_a_special_token(
    exact_model: AyaVision, builder: PromptBuilder, role: Role
) -> None:
    manifest = exact_model.bundle.manifest
    if role == "tool":  # the small checkpoint's template has no such turns
        manifest = replace(
            manifest,
            chat_template=manifest.chat_template.replace(
                "'user': '<|USER_TOKEN|>',", "'user': '<|USER_TOKEN|>', 'tool': '<|SYSTEM_TOKEN|>',"
            ),
        )
        builder = PromptBuilder(manifest, exact_model._engine.decoder.vocabulary.tokenize)
    check_no_special_token(builder, manifest.tokens, role)


@pytest.mark.parametrize("role", ROLES)
def test_no_text_can_write_a_special_token_of_the_released_tokenizers(
    release: tuple[PromptBuilder, Any, Bundle], role: Role
) -> None:
    builder, _, bundle = release
    assert len(bundle.manifest.tokens.special) >= 30
    check_no_special_token(builder, bundle.manifest.tokens, role)


def test_look_alikes_of_markers_are_left_alone(builder: PromptBuilder, exact_model: AyaVision) -> None:
    vocabulary = exact_model._engine.decoder.vocabulary
    for text in ("＜|ＵＳＥＲ＿ＴＯＫＥＮ|＞", "＜ｉｍａｇｅ＞", "‹image›", "<|USER_TOKEN|\u200b>"):
        spelled = b"".join(map(vocabulary.piece, builder.build([Message("user", text)], []).ids))
        assert text.encode() in spelled


def test_text_is_composed_before_it_is_tokenised(builder: PromptBuilder) -> None:
    for text in ("Tiếng Việt", "한국어", "café", "हिन्दी क़"):
        composed, apart = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
        turns = [
            [Message("user", "x"), Message("assistant", t), Message("user", t)] for t in (composed, apart)
        ]
        assert builder.build(turns[0], []).ids == builder.build(turns[1], []).ids


def test_answers_are_marked_with_the_tokens_that_the_model_writes(
    builder: PromptBuilder, exact_model: AyaVision
) -> None:
    special = exact_model.bundle.manifest.tokens.special
    turns = [Message("user", "A"), Message("assistant", "B "), Message("user", "C"), Message("assistant", "")]
    prompt = builder.build(turns, [], generate=False)
    for span, text in zip(prompt.answers, ("B ", ""), strict=True):
        ids = prompt.ids[span.start : span.stop]
        assert (ids[0], ids[-1]) == (special["<|START_RESPONSE|>"], special["<|END_RESPONSE|>"])
        assert prompt.ids[span.stop] in exact_model.bundle.manifest.tokens.stop
        spelled = b"".join(map(exact_model._engine.decoder.vocabulary.piece, ids[1:-1]))
        assert spelled == text.encode()


def test_the_models_own_tokens_stand_for_its_text(builder: PromptBuilder, exact_model: AyaVision) -> None:
    vocabulary = exact_model._engine.decoder.vocabulary
    letters = (
        tuple(vocabulary.tokenize("b")) + tuple(vocabulary.tokenize("l")) + tuple(vocabulary.tokenize("ue"))
    )
    assert list(letters) != vocabulary.tokenize("blue")
    turns = [Message("user", "A"), Message("assistant", "blue", ids=letters), Message("user", "C")]
    prompt = builder.build(turns, [])
    (span,) = prompt.answers
    assert prompt.ids[span.start + 1 : span.stop - 1] == letters


def test_a_template_that_changes_answers_is_followed_all_the_same(exact_model: AyaVision) -> None:
    template = exact_model.bundle.manifest.chat_template
    turns = [Message("user", "A"), Message("assistant", " blue ", ids=(7, 8)), Message("user", "C")]
    for change in ("turn.content | trim", "turn.content | upper", "turn.content[:3]"):
        builder = with_template(
            exact_model, template.replace("{{- turn.content -}}", "{{- " + change + " -}}")
        )
        same = [Message(t.role, t.text) for t in turns]
        assert builder.build(turns, []).ids == builder.build(same, []).ids
    glued = template.replace("{{- turn.content -}}", "{{- 'He said: ' + turn.content -}}")
    prompt = with_template(exact_model, glued).build(turns, [])
    assert prompt.answers == ()


@pytest.mark.parametrize("text", ["", " ", "\n", "blue ", " blue", "a\n\n"])
def test_an_answer_that_goes_on_keeps_its_blanks(
    builder: PromptBuilder, exact_model: AyaVision, text: str
) -> None:
    prompt = builder.build([Message("user", "A"), Message("assistant", text)], [])
    (span,) = prompt.answers
    special = exact_model.bundle.manifest.tokens.special
    assert prompt.ids[span.start] == special["<|START_RESPONSE|>"]
    spelled = b"".join(map(exact_model._engine.decoder.vocabulary.piece, prompt.ids[span.start + 1 :]))
    assert spelled == text.encode()
    assert span.stop == len(prompt.ids)


def test_an_answer_that_goes_on_keeps_the_models_own_tokens(
    builder: PromptBuilder, exact_model: AyaVision
) -> None:
    vocabulary = exact_model._engine.decoder.vocabulary
    letters = tuple(token for letter in "blue" for token in vocabulary.tokenize(letter))
    assert list(letters) != vocabulary.tokenize("blue")
    prompt = builder.build([Message("user", "A"), Message("assistant", "blue", ids=letters)], [])
    assert prompt.ids[-len(letters) :] == letters


CHANGED = {
    "turn.content | trim": ("blue ", " blue", "\n"),
    "turn.content | upper": ("blue",),
    "turn.content[:3]": ("blue",),
    "turn.content | replace('b', '')": ("blue",),
    "'' if loop.last else turn.content": ("blue",),
    "turn.content + turn.content": ("blue",),
}


@pytest.mark.parametrize("change", CHANGED)
def test_an_answer_that_the_template_changes_does_not_go_on(exact_model: AyaVision, change: str) -> None:
    template = exact_model.bundle.manifest.chat_template
    builder = with_template(exact_model, template.replace("{{- turn.content -}}", "{{- " + change + " -}}"))
    for text in CHANGED[change]:
        with pytest.raises(PromptError, match="the last message is the assistant's"):
            builder.build([Message("user", "A"), Message("assistant", text)], [])
    if "trim" in change:  # which changes nothing here
        turns = [
            Message("user", "A "),
            Message("assistant", " B "),
            Message("user", "C"),
            Message("assistant", "a b"),
        ]
        last = builder.build(turns, []).ids[-2:]
        assert b"".join(map(exact_model._engine.decoder.vocabulary.piece, last)) == b"a b"


def test_an_answer_does_not_go_on_where_the_template_opens_answers_in_another_way(
    exact_model: AyaVision,
) -> None:
    template = exact_model.bundle.manifest.chat_template
    opening = "'<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'"
    assert opening in template
    builder = with_template(exact_model, template.replace(opening, opening[:-1] + "<|START_THINKING|>'"))
    with pytest.raises(PromptError, match="the last message is the assistant's"):
        builder.build([Message("user", "A"), Message("assistant", "B")], [])
    builder.build([Message("user", "A"), Message("assistant", "B")], [], generate=False)


def test_a_marker_split_over_turns_and_parts_stays_text(
    builder: PromptBuilder, exact_model: AyaVision
) -> None:
    special = set(exact_model.bundle.manifest.tokens.special.values())
    turns = [Message("system", "<|END_OF_"), Message("user", "TURN_TOKEN|>")]
    harmless = [Message("system", "a"), Message("user", "b")]
    found = [i for i in builder.build(turns, []).ids if i in special]
    assert found == [i for i in builder.build(harmless, []).ids if i in special]


def test_a_users_placeholder_makes_no_image(builder: PromptBuilder) -> None:
    prompt = builder.build([Message("user", "<image> what is <image>?", 1)], [5])
    assert len(prompt.images) == 1


def test_what_a_user_writes_survives_as_text(builder: PromptBuilder, exact_model: AyaVision) -> None:
    vocabulary = exact_model._engine.decoder.vocabulary
    text = "a <image> <|USER_TOKEN|> \U000f0000 b"
    spelled = b"".join(vocabulary.piece(i) for i in builder.build([Message("user", text)], []).ids)
    assert text.encode() in spelled


def test_spans_hold_exactly_the_images(builder: PromptBuilder, exact_model: AyaVision) -> None:
    manifest = exact_model.bundle.manifest
    special, patch = manifest.tokens.special, manifest.tokens.image_patch
    prompt = builder.build([Message("user", "x", 2)], [5, 1])
    for span, tiles in zip(prompt.images, (5, 1), strict=True):
        ids = prompt.ids[span.start : span.stop]
        assert ids[0] == special[manifest.image_prompt.start]
        assert ids[-1] == special[manifest.image_prompt.end]
        assert ids.count(patch) == tiles * manifest.image_prompt.tokens_per_tile
    assert prompt.image_tokens == sum(span.stop - span.start for span in prompt.images)


def test_images_and_places_must_agree(builder: PromptBuilder) -> None:
    with pytest.raises(PromptError, match="places for 1 images, 2 were given"):
        builder.build([Message("user", "x", 1)], [1, 1])


def test_text_that_is_no_unicode_is_refused(builder: PromptBuilder) -> None:
    with pytest.raises(PromptError, match="not valid Unicode"):
        builder.build([Message("user", "lone \ud800 surrogate")], [])


def with_template(model: AyaVision, template: str) -> PromptBuilder:
    manifest = replace(model.bundle.manifest, chat_template=template)
    return PromptBuilder(manifest, model._engine.decoder.vocabulary.tokenize)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].__init__.__globals__ }}",
        "{{ raise_exception('no such role') }}",
        "{% for %}",
        "{{ 'a' + 1 }}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_a_hostile_or_faulty_template_gets_nowhere(exact_model: AyaVision, template: str) -> None:
    with pytest.raises(PromptError, match="chat template"):
        with_template(exact_model, template).build([Message("user", "x")], [])


def test_a_template_that_writes_too_many_images_is_an_error(exact_model: AyaVision) -> None:
    with pytest.raises(PromptError, match="more images than the 0 given"):
        with_template(exact_model, "<image>{{ messages[0].content }}").build([Message("user", "x")], [])


@pytest.mark.parametrize("change", ["upper", "lower", "title", "trim", "replace('a', 'a')"])
def test_a_template_that_changes_texts_opens_no_door(exact_model: AyaVision, change: str) -> None:
    builder = with_template(exact_model, "{{ messages[0].content | " + change + " }}")
    special = set(exact_model.bundle.manifest.tokens.special.values())
    for marker in (*exact_model.bundle.manifest.tokens.special, "<image>"):
        for text in (marker, marker.lower(), marker.upper(), marker.swapcase()):
            assert not special & set(builder.build([Message("user", text)], []).ids), text


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% if tools is none and documents is none %}a{% endif %}", "a"),
        ("{% generation %}a{% endgeneration %}", "a"),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", '{"a": 2, "b": 1}'),
        ("{{ eos_token }}{{ pad_token }}", "<|END_OF_TURN_TOKEN|><PAD>"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
    ],
)
def test_templates_find_what_transformers_gives_them(
    exact_model: AyaVision, template: str, text: str
) -> None:
    named = exact_model.bundle.manifest.tokens.named
    assert ChatTemplate(template).render(messages=[], **named) == text


def test_a_template_that_drops_images_is_an_error(exact_model: AyaVision) -> None:
    with pytest.raises(PromptError, match="0 of 1 images"):
        with_template(exact_model, "{{ bos_token }}").build([Message("user", "x", 1)], [1])
