"""Blocks of a page that a script writes: they stand between two comments with their name."""

from __future__ import annotations


def with_block(text: str, name: str, block: str) -> str:
    """A page with the text between the marks of a block replaced.

    Example:
        >>> page = "A\\n<!-- sums: measured -->\\n\\nold\\n\\n<!-- sums: end -->\\nB"
        >>> with_block(page, "sums", "new") == page.replace("old", "new")
        True
    """
    begin, end = f"<!-- {name}: measured -->", f"<!-- {name}: end -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{block}\n\n{end}{rest.split(end)[1]}"
