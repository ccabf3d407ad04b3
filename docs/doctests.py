"""Docstring examples as code in the reference: Markdown takes `>>>` for a quotation."""

import re

from griffe import Extension

EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)  # to the next empty line


class Doctests(Extension):
    """Fence every example of every docstring before it is parsed."""

    def on_object(self, *, obj, **kwargs) -> None:
        """Change one object's docstring."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
