"""Describe images: python examples/describe.py IMAGE... [-q QUESTION]... [-m BUNDLE]

Each image is encoded once, however many questions are asked about it.
"""

import sys
from argparse import ArgumentParser

from ayaedge import AyaEdgeError, AyaVision


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("-q", "--question", action="append", help='default: "Describe the picture."')
    parser.add_argument("-m", "--model", metavar="BUNDLE", help="default: the demonstration model")
    arguments = parser.parse_args()

    with AyaVision.load(arguments.model) as model:
        for path in arguments.images:
            image = model.encode_image(path)
            print(path)
            for question in arguments.question or ["Describe the picture."]:
                print("  ", end="")
                for piece in model.stream(question, images=[image]):
                    print(piece, end="", flush=True)
                print()


if __name__ == "__main__":
    try:
        main()
    except AyaEdgeError as error:  # no such bundle, no such image, ...
        sys.exit(str(error))
