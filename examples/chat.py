"""Talk about images: python examples/chat.py [FILE] [-m BUNDLE]

FILE          where the conversation is kept; the next time it goes on from there
/image PATH   show an image with the next question
/undo         forget the last question and its answer
Ctrl-C        stop an answer; at the prompt: leave
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import suppress
from pathlib import Path

from ayaedge import AyaEdgeError, AyaVision, Conversation, EncodedImage


def print_answer(chat: Conversation, question: str, images: list[EncodedImage]) -> None:
    try:
        for piece in chat.stream(question, images=images):
            print(piece, end="", flush=True)
        print()
    except KeyboardInterrupt:  # has stopped the answer already; what came of it stays in the conversation
        print(" [stopped]")


def talk(model: AyaVision, chat: Conversation) -> None:
    images: list[EncodedImage] = []
    while True:
        line = input("> ").strip()
        try:
            if line.startswith("/image "):
                images.append(model.encode_image(line.removeprefix("/image ")))
            elif line == "/undo":
                chat.undo()
            elif line:
                print_answer(chat, line, images)
                images = []
        except AyaEdgeError as error:  # no such image, too long for the context, ...
            print(error)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE")
    parser.add_argument("-m", "--model", metavar="BUNDLE", help="default: the demonstration model")
    arguments = parser.parse_args()

    file = arguments.file
    with AyaVision.load(arguments.model) as model:
        chat = model.open_chat(file) if file and file.exists() else model.chat()
        with suppress(EOFError, KeyboardInterrupt):
            talk(model, chat)
        if file:
            chat.save(file)


if __name__ == "__main__":
    main()
