"""Read an invoice into a dictionary: python examples/extract_invoice.py IMAGE [-n TOKENS] [-m BUNDLE]

The answer always follows the schema. Whether it is true depends on the model: the demonstration model only knows
coloured shapes and numbers, so its values are made up.
"""

import json
import sys
from argparse import ArgumentParser

from ayaedge import AyaEdgeError, AyaVision

ITEM = {
    "type": "object",
    "properties": {
        "description": {"type": "string", "maxLength": 80},
        "quantity": {"type": "integer", "minimum": 0, "maximum": 9999},
        "price": {"type": "number", "minimum": 0, "maximum": 1_000_000, "multipleOf": 0.01},
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
        "items": {"type": "array", "items": ITEM, "maxItems": 14},
        "total": {"type": "number", "minimum": 0, "maximum": 1_000_000, "multipleOf": 0.01},
    },
    "required": ["number", "date", "currency", "items", "total"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "invoice", "schema": INVOICE}}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("-n", "--max-tokens", type=int, default=1000, metavar="TOKENS", help="default: 1000")
    parser.add_argument("-m", "--model", metavar="BUNDLE", help="default: the demonstration model")
    arguments = parser.parse_args()

    question, form = "Extract this invoice.", {"response_format": FORMAT, "max_tokens": arguments.max_tokens}
    with AyaVision.load(arguments.model) as model:
        invoice = model.ask(question, images=[arguments.image], **form).parse()
    print(json.dumps(invoice, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    try:
        main()
    except AyaEdgeError as error:  # no such image, an answer that was cut off, ...
        sys.exit(str(error))
