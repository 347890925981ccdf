"""The text files of a checkpoint directory, read in transformers' order where several say the same.

What is wrong with them is collected, so that a user sees all of it at once.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ayaedge.files import text_of
from ayaedge.untrusted.json_text import read_json
from ayaedge.untrusted.regular_file import read_regular

MOST_BYTES = 1 << 26
"""Of a text file; the largest of a released checkpoint, tokenizer.json, has 20 MB."""
MOST_DIGITS = 40
"""Of a whole number: transformers writes 10 ** 30 for a length without a limit."""
_STEP = re.compile(r"checkpoint-\d+")


def checkpoint_name(directory: Path) -> str:
    """The name by which people call a checkpoint: its directory's, or its model's if that is a hash or a step."""
    path = _absolute(directory)
    if hub_model(path):
        return hub_model(path).rsplit("/", 1)[-1]
    if _STEP.fullmatch(path.name) and path.parent.name:
        return f"{path.parent.name}-{path.name}"
    return path.name or "checkpoint"


def hub_model(directory: Path) -> str:
    """The model whose snapshot in a Hugging Face cache `directory` is, like `owner/name`; empty if it is none."""
    *_, model, kind, _revision = ("", "", "", *_absolute(directory).parts)
    if kind != "snapshots" or not model.startswith("models--"):
        return ""
    return model.removeprefix("models--").replace("--", "/", 1)


def _absolute(directory: Path) -> Path:
    """The path without "." and "..", but with its links: a link's name is the user's own."""
    return Path(os.path.abspath(directory))  # noqa: PTH100 - `resolve` follows links


def missing_file(path: Path) -> str:
    """A sentence on a file that is not there: in a cache of downloads it is a link that leads nowhere."""
    if not path.is_symlink():
        return f"{path.name} is missing"
    model = hub_model(path.parent)
    again = f"hf download {model}" if model else "copy the files, not the links (cp -L), or download it again"
    return (
        f"{path.name} is a link to {path.readlink()}, which is missing; the download is incomplete: {again}"
    )


def read_settings(path: Path) -> Any:
    """The JSON of a checkpoint's file; OSError, or ValueError with half a sentence on what is wrong."""
    return read_json(path, most_bytes=MOST_BYTES, most_digits=MOST_DIGITS, constants=True)


class CheckpointFiles:
    """Reads them; what is wrong is appended to `faults`."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.faults: list[str] = []

    def read(self, name: str, *, optional: bool = False) -> dict[str, Any]:
        """The JSON object in a file; empty if it is missing or damaged."""
        try:
            data = read_settings(self.directory / name)
        except FileNotFoundError:
            self._add_missing(name, optional=optional)
            return {}
        except OSError as error:
            self.faults.append(f"{name} cannot be read: {error}")
            return {}
        except ValueError as error:
            self.faults.append(f"{name} is damaged: {error}")
            return {}
        if not isinstance(data, dict):
            self.faults.append(f"{name} must hold a JSON object")
            return {}
        return data

    def _read_text(self, name: str, *, optional: bool) -> str | None:
        try:
            return text_of(read_regular(self.directory / name, most_bytes=MOST_BYTES))
        except FileNotFoundError:
            self._add_missing(name, optional=optional)
        except (OSError, ValueError) as error:
            self.faults.append(f"{name} cannot be read: {error}")
        return None

    def _add_missing(self, name: str, *, optional: bool) -> None:
        path = self.directory / name
        if not optional or path.is_symlink():
            self.faults.append(missing_file(path))

    def read_tokenizer_settings(self) -> dict[str, Any]:
        """tokenizer_config.json; before transformers 4.34 some of it stood in two files of their own."""
        settings = self.read("tokenizer_config.json")
        if not settings or "added_tokens_decoder" in settings:
            return settings
        named = self.read("special_tokens_map.json", optional=True)
        listed = self.read("added_tokens.json", optional=True)
        added = {str(index): {"content": text} for text, index in listed.items()}
        return {**settings, **named, **({"added_tokens_decoder": added} if added else {})}

    def read_image_processor(self, processor: dict[str, Any]) -> dict[str, Any]:
        """The image processor's settings: a file of their own, or in newer versions inside the processor's."""
        nested = processor.get("image_processor")
        if isinstance(nested, dict) and not os.path.lexists(self.directory / "preprocessor_config.json"):
            return nested
        return self.read("preprocessor_config.json")

    def read_template(self, processor: dict[str, Any], settings: dict[str, Any]) -> str:
        """The chat template: a file of its own (two spellings), in processor_config.json, or with the tokenizer."""
        template = _default(self.read("chat_template.json", optional=True).get("chat_template"))
        jinja = self._read_text("chat_template.jinja", optional=True)
        if template and jinja is not None and template.rstrip("\n") != jinja.rstrip("\n"):
            self.faults.append(
                "chat_template.json and chat_template.jinja differ: transformers' processor reads the first, its "
                "tokenizer the second; remove the one that the model was not trained with"
            )
        if not template:
            template = jinja
        for place in (processor, settings):
            template = _default(place.get("chat_template")) if template is None else template
        if template is None:
            self.faults.append(
                "there is no chat template: neither chat_template.jinja, chat_template.json nor one in "
                "processor_config.json or tokenizer_config.json"
            )
        return template or ""

    def read_license(self) -> str:
        """The licence that the model card states in its front matter."""
        text = self._read_text("README.md", optional=True) or ""
        front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        stated = re.search(r"^license:[ \t]*(\S+)", front[1], re.MULTILINE) if front else None
        return stated[1] if stated else "not stated by the checkpoint"


def _default(template: object) -> str | None:
    """A template that stands alone, or the one called default among several."""
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
