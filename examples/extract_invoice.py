"""Read an invoice into a dictionary: python examples/extract_invoice.py PICTURE [-n TOKENS] [-m BUNDLE]

The answer always follows the schema. Whether it is true depends on the model: the demonstration model only knows
coloured shapes and numbers, so its values are made up.
"""

import argparse
import json
import sys

from ayaedge import AyaVision, TruncatedError

ITEM = {
    "type": "object",
    "properties": {
        "description": {"type": "string", "maxLength": 80},
        "quantity": {"type": "integer", "minimum": 0, "maximum": 9999},
        "price": {"type": "number"},
    },
    "required": ["description", "quantity", "price"],
    "additionalProperties": False,
}
INVOICE = {
    "type": "object",
    "properties": {
        "number": {"type": "string", "maxLength": 20},
        "date": {"type": "string", "format": "date"},
        "currency": {"enum": ["EUR", "GBP", "JPY", "USD"]},
        "items": {"type": "array", "items": ITEM, "maxItems": 20},
        "total": {"type": "number"},
    },
    "required": ["number", "date", "currency", "items", "total"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "invoice", "schema": INVOICE}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", metavar="PICTURE")
    parser.add_argument("-n", "--max-tokens", type=int, default=1000, metavar="TOKENS", help="default: 1000")
    parser.add_argument("-m", "--model", metavar="BUNDLE", help="default: the demonstration model")
    arguments = parser.parse_args()

    question = "Extract this invoice."
    with AyaVision.load(arguments.model) as model:
        answer = model.ask(
            question, images=[arguments.picture], response_format=FORMAT, max_tokens=arguments.max_tokens
        )
    try:
        print(json.dumps(answer.parse(), indent=2, ensure_ascii=False))
    except TruncatedError:
        sys.exit(f"The answer was cut off after {arguments.max_tokens} tokens: allow more with -n.\n{answer.text}")


if __name__ == "__main__":
    main()
