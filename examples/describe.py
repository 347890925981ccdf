"""Describe pictures: python examples/describe.py PICTURE... [-q QUESTION]... [-m BUNDLE]

Each picture is encoded once, however many questions are asked about it.
"""

import argparse

from ayaedge import AyaVision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", metavar="PICTURE")
    parser.add_argument("-q", "--question", action="append", help='default: "Describe the picture."')
    parser.add_argument("-m", "--model", metavar="BUNDLE", help="default: the demonstration model")
    arguments = parser.parse_args()

    with AyaVision.load(arguments.model) as model:
        for path in arguments.pictures:
            print(path)
            picture = model.encode_image(path)
            for question in arguments.question or ["Describe the picture."]:
                print("  ", end="")
                for piece in model.stream(question, images=[picture]):
                    print(piece, end="", flush=True)
                print()


if __name__ == "__main__":
    main()
