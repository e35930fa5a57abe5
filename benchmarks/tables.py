"""Markdown tables of the benchmarks' pages."""


def markdown_table(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A table of cells that are already Markdown; the first `left` columns are words, the others numbers."""
    rule = ["---" if column < left else "--:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])
