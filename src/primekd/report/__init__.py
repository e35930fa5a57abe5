"""Tables, figures (figures.py) and pages from results that are already computed: Markdown, HTML, the
README's blocks. Computes no statistic of its own. What reads a folder of logs raises UserError if a file that it needs
is missing, has other columns, or cannot be read."""
