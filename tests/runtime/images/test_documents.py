"""Pages of PDFs that other programs wrote, pages of TIFFs, frames of animations; and files that ask for too much."""

from __future__ import annotations

import base64
import contextlib
import io
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ayaedge import (
    AyaVision,
    CancelledError,
    ContextLengthError,
    ImageError,
    InvalidOptionError,
    Page,
    PromptError,
)
from ayaedge.cancellation import Cancellation
from ayaedge.images import pdf
from ayaedge.images.frames import MOST_FRAME_PIXELS
from ayaedge.images.load import count_pages, image_size, list_images, load_image, load_rgb, take_image
from ayaedge.images.pages import MOST_PAGES
from ayaedge.images.pdf import PdfReader
from ayaedge.images.pdf_process import Pages
from ayaedge.images.tile_budget import TileChoice, image_cost, page_size
from ayaedge.images.tiling import split_tiles
from ayaedge.isolation.forms import image_form, image_of
from ayaedge.openai.messages import parse_messages
from ayaedge.server.asked import understood
from ayaedge.server.messages import Messages
from ayaedge.server.options import Limits
from ayaedge.server.responses import Responses
from command_line import ayaedge
from served import CELLS, QUESTION

WRITTEN = Path(__file__).parent / "pdfs"
"""By LibreOffice, pdfTeX and cairo; a page or two each."""
RED, GREEN, BLUE = (200, 30, 40), (30, 160, 60), (30, 80, 200)


def scan(path: Path, *colors: tuple[int, int, int], size: tuple[int, int] = (210, 297)) -> Path:
    """What a scanner writes: a PDF whose pages are one JPEG each."""
    first, *rest = (Image.new("RGB", size, color) for color in colors)
    first.save(path, "PDF", save_all=True, append_images=rest)
    return path


def drawn(path: Path, *, password: str | None = None, pages: int = 2) -> Path:
    """What a program for reports writes."""
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(stream := io.BytesIO(), pagesize=(300, 300), encrypt=password)
    for number in range(pages):
        canvas.setFillColorRGB(*(share / 255 for share in (RED, BLUE)[number % 2]))
        canvas.circle(150, 150, 100, stroke=0, fill=1)
        canvas.showPage()
    canvas.save()
    path.write_bytes(stream.getvalue())
    return path


def raw_pdf(content: bytes = b"", box: str = "0 0 100 100", kids: str = "3 0 R", more: bytes = b"") -> bytes:
    """A PDF without a table of its objects: pdfium looks for them."""
    return (
        b"%PDF-1.7\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
        + f"2 0 obj<</Type/Pages/Count {kids.count('R')}/Kids[{kids}]>>endobj\n".encode()
        + f"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[{box}]/Contents 4 0 R/Resources<<>>>>endobj\n".encode()
        + b"4 0 obj<</Length %d>>stream\n%s\nendstream endobj\n" % (len(content), content)
        + more + b"trailer<</Root 1 0 R>>\n%%EOF"
    )  # fmt: skip


@pytest.mark.parametrize("name", ["office", "tex", "cairo"])
def test_pages_that_other_programs_wrote_are_read(name: str) -> None:
    pages = Pages((WRITTEN / f"{name}.pdf").read_bytes())
    width, height = pages.shape(1)
    drawn_page = np.frombuffer(pages.draw(1, 600, 900), np.uint8).reshape(900, 600, 3)
    assert width > 100 < height
    assert (drawn_page == 255).mean() > 0.4  # on white
    assert (drawn_page < 128).any()  # with something on it


def test_a_page_is_seen_in_its_place_and_its_colors(tmp_path: Path) -> None:
    path = WRITTEN / "cairo.pdf"
    red, blue = load_image(path)[584, 468], load_image(f"{path}#page=1")[700, 1345]
    assert np.abs(red.astype(int) - RED).max() < 3
    assert np.abs(blue.astype(int) - BLUE).max() < 3


def test_a_model_answers_about_a_scanned_page(demo_model: AyaVision, tmp_path: Path) -> None:
    path = tmp_path / "scan.pdf"
    Image.new("RGB", (90, 90), RED).save(path, save_all=True, append_images=[Image.open(CELLS)])
    answer = demo_model.ask(QUESTION, images=f"{path}#page=2")
    assert str(answer) == "2675"
    assert answer.usage.tiles == demo_model.ask(QUESTION, images=CELLS).usage.tiles


def test_pages_are_drawn_in_the_size_of_their_grid_and_no_more(demo_model: AyaVision, tmp_path: Path) -> None:
    manifest = demo_model.bundle.manifest
    for limit in (1, 4, None):
        choice = TileChoice(max_tiles=limit)
        for shape in ((2896, 4096), (4096, 4096), (4096, 2048), (4096, 41), (1365, 4096)):
            size = page_size(shape, manifest, choice)
            wanted, found = image_cost(shape, manifest, choice), image_cost(size, manifest, choice)
            assert (found.columns, found.rows) == (wanted.columns, wanted.rows)
            assert size == (found.columns * manifest.tiling.tile_size, found.rows * manifest.tiling.tile_size)
    path = scan(tmp_path / "wide.pdf", GREEN, size=(400, 100))
    with PdfReader() as reader:
        fit = lambda shape: page_size(shape, manifest, TileChoice(max_tiles=4))  # noqa: E731
        page = load_rgb(path, fit=fit, reader=reader)
        assert image_size(path, reader=reader)[0] == 4096
    assert page.size == (4 * manifest.tiling.tile_size, manifest.tiling.tile_size)
    assert len(split_tiles(page, manifest.tiling, max_tiles=4)) == 5


def test_one_process_serves_all_pages_of_a_question(
    demo_model: AyaVision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    start = pdf.Child

    def counted(*arguments: Any) -> Any:
        started.append(start(*arguments))
        return started[-1]

    monkeypatch.setattr(pdf, "Child", counted)
    path = drawn(tmp_path / "report.pdf")
    question = "What colors are in the pictures?"
    answer = demo_model.ask(question, images=f"{path}#pages=1-2", max_tiles=1, max_tokens=2)
    assert len(answer.usage.images) == 2
    assert len(started) == 1
    assert started[0].process.poll() is not None


def test_pages_that_do_not_fit_say_what_they_cost_before_any_is_drawn(
    demo_model: AyaVision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pdf.PdfDocument, "draw", lambda *_: pytest.fail("a page was drawn"))
    path = drawn(tmp_path / "book.pdf", pages=60)
    with pytest.raises(ContextLengthError, match=r"has \d{4,} tokens and only \d+ fit") as error:
        demo_model.ask("What is this?", images=f"{path}#pages=1-60")
    assert error.value.image_tokens > error.value.available


def test_a_file_whose_name_selects_pages_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8), RED).save("a.png")
    Path("a.png").rename("a.png#page=3")
    Image.new("RGB", (8, 8), BLUE).save("a.png")
    for given in ("a.png#page=3", Path("a.png#page=3"), Path("a.png#page=3").absolute().as_uri()):
        assert tuple(load_image(given)[0, 0]) == RED
        assert tuple(load_image(take_image(given))[0, 0]) == RED
    assert tuple(load_image("a.png#page=1")[0, 0]) == BLUE


@pytest.mark.parametrize("word", ["page", "pages", "frame", "frames"])
def test_pages_are_named_one_by_one_or_as_ranges(word: str) -> None:
    assert list_images(f"a.pdf#{word}=2,4-6") == [Page("a.pdf", number) for number in (2, 4, 5, 6)]
    assert list_images(["a.png", Path("b.tif#frame=3")]) == ["a.png", Page("b.tif", 3)]
    assert list_images("a.png#top") == ["a.png#top"]


def test_pages_that_cannot_be_are_refused_by_name() -> None:
    for name in ("a.pdf#page=0", "a.pdf#pages=4-2"):
        with pytest.raises(ImageError, match="counted from 1"):
            list_images(name)
    with pytest.raises(ImageError, match=f"more than {MOST_PAGES} pages"):
        list_images("a.pdf#pages=1-1000,2000")
    with pytest.raises(ImageError, match="names 2 pages: name one"):
        take_image("a.pdf#pages=1-2")
    with pytest.raises(InvalidOptionError, match="number of a page"):
        Page("a.pdf", 0)


def test_a_document_is_bytes_or_a_data_url_too(tmp_path: Path) -> None:
    data = scan(tmp_path / "a.pdf", RED, GREEN).read_bytes()
    url = "data:application/pdf;base64," + base64.b64encode(data).decode()
    with PdfReader() as reader:
        for given in (f"{url}#page=2", Page(data, 2), Page(io.BytesIO(data), np.int64(2))):
            assert np.abs(np.asarray(load_rgb(take_image(given), reader=reader))[5, 5] - GREEN).max() < 3
        with pytest.raises(ImageError, match=r"has 2 pages: say which, with #page=1 or #pages=1-2"):
            load_rgb(data, reader=reader)
        with pytest.raises(ImageError, match="has 2 pages, not 3"):
            load_rgb(Page(data, 3), reader=reader)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (raw_pdf(kids=""), "without pages|damaged"),
        (raw_pdf(box="0 0 0 0") + b" ", None),  # pdfium takes a letter's page instead
        (raw_pdf(box="0 0 100000 1"), "measures 100000 x 1 points"),
        (b"%PDF-1.7 obj " + bytes(1000), "a PDF: make images of its pages with another program, .* damaged"),
    ],
    ids=["no pages", "no size", "a line", "damaged"],
)
def test_documents_that_cannot_be_read_are_refused_in_words(data: bytes, says: str | None) -> None:
    if says is None:
        assert image_size(data) == (3165, 4096)
        return
    with pytest.raises(ImageError, match=says):
        load_image(data)


def test_an_encrypted_document_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        ImageError, match=r"locked.pdf is a PDF that is encrypted: save a copy without a password"
    ):
        load_image(drawn(tmp_path / "locked.pdf", password="secret"))


def test_a_document_of_too_many_bytes_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "MOST_DOCUMENT_BYTES", 100)
    monkeypatch.setattr(pdf, "Child", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(ImageError, match="more than the 100 that are read: split it"):
        load_image(raw_pdf())


def test_a_page_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "MOST_SECONDS", 1)
    endless = raw_pdf(b"q 0.01 w " + b"0 0 m 100 100 l 3 7 50 90 40 2 c S " * 400_000)
    before = time.monotonic()
    with pytest.raises(
        ImageError, match=r"page 1.* takes longer than the 1 s that it may take|opening it takes"
    ):
        load_rgb(endless, fit=lambda _: (4000, 4000))
    assert time.monotonic() - before < 20


def test_cancelling_ends_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    endless, flag = raw_pdf(b"q 0.01 w " + b"0 0 m 100 100 l 3 7 50 90 40 2 c S " * 400_000), Cancellation()
    timer = threading.Timer(1.0, flag.set)
    timer.start()
    with pytest.raises(CancelledError), PdfReader(flag) as reader:
        load_rgb(endless, fit=lambda _: (4000, 4000), reader=reader)
    timer.join()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
def test_a_document_that_fills_the_memory_ends_nothing_but_its_process() -> None:
    with PdfReader() as reader:
        document = reader.open(raw_pdf(), "bomb.pdf")
        with pytest.raises(ImageError, match=r"bomb\.pdf is a PDF: .* (ended pdfium|damaged)"):
            document.draw(1, lambda _: (30_000, 30_000))
        assert reader.open(raw_pdf(), "bomb.pdf").shape(1) == (4096, 4096)


def test_without_the_extra_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(ValueError, match="missing"):
        Pages(raw_pdf())
    monkeypatch.setattr(pdf.PdfDocument, "_exchange", lambda *_: {"fault": "missing"})
    with pytest.raises(ImageError, match=r'pip install "ayaedge\[pdf\]"'):
        load_image(raw_pdf())


@pytest.mark.parametrize(
    "said", [b"x", b"[]", b'{"pages": "9"}', b'{"shape": [1, 2, 3]}', b'{"shape": 5}', b"{}"]
)
def test_what_a_process_that_was_taken_over_says_is_data_of_its_form_or_a_fault(said: bytes) -> None:
    found = pdf._checked(said)
    assert found == {} or found == {"fault": "damaged"}


@pytest.mark.parametrize("big", [False, True])
def test_every_page_of_a_tiff_is_checked_and_read_like_the_first(big: bool, tmp_path: Path) -> None:
    pages = [Image.new("RGB", (20 + n, 10), color) for n, color in enumerate((RED, GREEN, BLUE))]
    pages[2].getexif()[0x0112] = 6
    pages[0].save(tmp_path / "fax.tif", save_all=True, append_images=pages[1:], big_tiff=big)
    for number, (width, color) in enumerate(((20, RED), (21, GREEN)), 1):
        given = f"{tmp_path / 'fax.tif'}#page={number}"
        assert image_size(given) == (width, 10)
        assert tuple(load_image(given)[0, 0]) == color
    with pytest.raises(ImageError, match=r"fax.tif has 3 pages, not 4"):
        load_image(f"{tmp_path / 'fax.tif'}#frame=4")


def test_a_tiff_whose_pages_are_linked_in_a_circle_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tif")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (tags,) = struct.unpack_from("<H", data, first)
    data[first + 2 + 12 * tags : first + 6 + 12 * tags] = struct.pack("<I", first)
    with pytest.raises(ImageError, match="linked in a circle"):
        load_image(Page(bytes(data), 7))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_frames_of_an_animation_are_named_and_counted(form: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, GREEN, BLUE)]
    stream = io.BytesIO()
    more: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(stream, form, save_all=True, append_images=frames[1:], **more)
    for number, color in enumerate((RED, GREEN, BLUE), 1):
        assert np.abs(load_image(Page(stream.getvalue(), number))[3, 3].astype(int) - color).max() < 3
    with pytest.raises(ImageError, match="has fewer than 4 frames"):
        load_image(Page(stream.getvalue(), 4))


def test_a_late_frame_that_costs_too_much_says_what_it_costs() -> None:
    stream = io.BytesIO()
    frames = [Image.new("L", (1000, 1000), shade) for shade in (0, 255)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    number = MOST_FRAME_PIXELS // 1_000_000 + 1
    with pytest.raises(ImageError, match=rf"frame {number} of .* takes {number} frames of 1000000 pixels"):
        load_image(Page(stream.getvalue(), number))


def test_messages_show_pages_of_files_that_are_allowed_and_of_no_others(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    scan(tmp_path / "secret.pdf", RED)
    scan(tmp_path / "open" / "a.pdf", RED)
    (tmp_path / "open" / "link.pdf").symlink_to(tmp_path / "secret.pdf")

    def shown(name: str) -> Any:
        url = (tmp_path / "open" / name).as_uri().replace("%23", "#").replace("%3D", "=")
        part = {"type": "image_url", "image_url": {"url": url}}
        return parse_messages(
            [{"role": "user", "content": [part]}], trusted=False, local_files=tmp_path / "open"
        )

    (message,) = shown("a.pdf#pages=1-2")
    assert message.images == tuple(Page((tmp_path / "open" / "a.pdf").resolve(), n) for n in (1, 2))
    with pytest.raises(PromptError, match="outside of the directories"):
        shown("link.pdf#page=1")
    with pytest.raises(PromptError, match="counted from 1"):
        shown("a.pdf#page=0")


def test_every_surface_of_the_server_takes_documents(tmp_path: Path) -> None:
    data = scan(tmp_path / "a.pdf", RED).read_bytes()
    text = base64.b64encode(data).decode()
    url = f"data:application/pdf;base64,{text}"
    source = {"type": "base64", "media_type": "application/pdf", "data": text}

    def user(**part: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [part]}]

    for asked in (
        understood(user(type="file", file={"file_data": url, "filename": "a.pdf"}), {}, ()),
        understood(user(type="image_url", image_url={"url": f"{url}#page=1"}), {}, ()),
        Responses().asked({"input": user(type="input_file", file_data=url)}, ()),
        Messages().asked({"max_tokens": 9, "messages": user(type="document", source=source)}, ()),
    ):
        (image,) = asked.within(Limits()).messages[0].images
        assert image in (data, Page(data, 1))
    with pytest.raises(PromptError, match="file_data is missing"):
        understood(user(type="file", file={"filename": "x"}), {}, ())


def test_a_page_reaches_an_isolated_model_as_it_is(tmp_path: Path) -> None:
    arrays: list[Any] = []
    for given in (Page(b"%PDF-", 3), take_image(f"{tmp_path}/a.pdf#page=2")):
        assert image_of(image_form(given, arrays), arrays) == given


def test_the_commands_take_pages(tmp_path: Path) -> None:
    path = tmp_path / "my scan.pdf"
    Image.new("RGB", (90, 90), RED).save(path, save_all=True, append_images=[Image.open(CELLS)])
    asked = ayaedge("ask", "--image", f"{path}#page=2", QUESTION)
    assert (asked.returncode, asked.stdout.strip()) == (0, "2675"), asked.stderr
    chat = ayaedge("chat", "--max-tiles", "1", typed=f"/image '{path}#pages=1-2'\nWhat is that?\n".encode())
    assert chat.returncode == 0, chat.stderr
    assert "(page 2, " in chat.stderr
    assert "image 2" in ayaedge("plan", "--image", f"{path}#pages=1-2").stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("soffice") is None, reason="LibreOffice is not installed")
def test_a_document_that_libreoffice_writes_now_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("4098")
    subprocess.run(
        ["soffice", "--headless", "--convert-to", "pdf", "a.txt"],
        cwd=tmp_path,
        check=True,
    )
    assert count_pages(tmp_path / "a.pdf") == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="TeX is not installed")
def test_a_document_that_tex_writes_now_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.tex").write_text(r"\documentclass{article}\begin{document}4098\newpage 2675\end{document}")
    subprocess.run(["pdflatex", "-interaction=batchmode", "a.tex"], cwd=tmp_path, check=True)
    assert count_pages(tmp_path / "a.pdf") == 2
    assert (load_image(f"{tmp_path / 'a.pdf'}#page=2") < 100).any()


def test_fields_that_were_filled_in_are_drawn() -> None:
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(stream := io.BytesIO(), pagesize=(200, 100))
    canvas.acroForm.textfield(value="MMMMMM", x=10, y=30, width=180, height=40, borderWidth=0, fontSize=30)
    canvas.showPage()
    canvas.save()
    page = Pages(stream.getvalue()).draw(1, 200, 100)
    assert (np.frombuffer(page, np.uint8) < 60).mean() > 0.01


def test_a_drawing_in_a_picture_that_was_scanned_in_grey_is_drawn_whole(tmp_path: Path) -> None:
    picture = Image.new("L", (100, 100), 255)
    ImageDraw.Draw(picture).rectangle((0, 50, 99, 99), fill=0)
    picture.save(tmp_path / "grey.pdf")
    page = np.frombuffer(Pages((tmp_path / "grey.pdf").read_bytes()).draw(1, 100, 100), np.uint8).reshape(
        100, 100, 3
    )
    assert page[:45].min() > 245
    assert page[55:].max() < 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["office", "tex", "cairo"])
def test_a_changed_document_is_drawn_or_refused(name: str) -> None:
    data, rng = (WRITTEN / f"{name}.pdf").read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        changed = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 30)):
            changed[place] = rng.integers(0, 256)
        cut = bytes(changed[: rng.integers(len(data) // 2, len(data) + 1)])
        with contextlib.suppress(ImageError), PdfReader() as reader:
            assert load_rgb(Page(cut, 1), fit=lambda _: (60, 80), reader=reader).size == (60, 80)
