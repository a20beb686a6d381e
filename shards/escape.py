"""Text in HTML, whatever a data set calls its classes."""

from __future__ import annotations

import html
import re

# What no page may hold, and what turns the text after it around (Unicode's embeddings, overrides and isolates), so that
# a name could make its neighbours read as something else. The marks U+200E, U+200F and U+061C turn nothing else.
_HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def escape(text: str) -> str:
    """Text and values of attributes in HTML; characters that control what is around them as `\\u202e`."""
    return html.escape(_HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text))
