"""The formats of JSON Schema that are honoured, as regular expressions where llguidance's own are too wide.

Compared with llguidance 1.9: its dates have 30 days in February, its times a second 60, its host names no greatest
length, and its e-mail addresses need no dot, all of which Python's readers refuse.
"""

from __future__ import annotations

from typing import Any

_YEAR = "[1-9][0-9]{3}"
_LEAP_YEAR = "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[13579][26]|[2468][048])00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP_YEAR}-02-29)"
)
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_ATOM = "[a-zA-Z0-9_+-]{1,30}"

FORMATS: dict[str, dict[str, Any]] = {
    "date": {"pattern": f"^{_DATE}$"},
    "time": {"pattern": f"^{_TIME}$"},
    "date-time": {"pattern": f"^{_DATE}T{_TIME}$"},
    "email": {"pattern": rf"^{_ATOM}(?:\.{_ATOM}){{0,3}}@(?:[a-zA-Z0-9]{{1,20}}\.){{1,4}}[a-zA-Z]{{2,12}}$"},
    "hostname": {"format": "hostname", "maxLength": 253},
    **{name: {"format": name} for name in ("duration", "ipv4", "ipv6", "uri", "uuid")},
}
"""What stands for each format. Years have four digits, times an offset (RFC 3339)."""

REFUSED = {
    "idn-email", "idn-hostname", "uri-reference", "iri", "iri-reference", "uri-template", "json-pointer",
    "relative-json-pointer", "regex",
}  # fmt: skip
"""Formats of JSON Schema that are not honoured. Names that it does not have are annotations."""
