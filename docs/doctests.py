"""Show docstring examples as code in the reference, because Markdown reads `>>>` as a quotation."""

import re

from griffe import Extension, Object

EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)  # up to the next empty line


class Doctests(Extension):
    """Put a code fence around every example of a docstring before the docstring is parsed."""

    def on_object(self, *, obj: Object, **kwargs: object) -> None:
        """Fence the examples of one object's docstring."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
