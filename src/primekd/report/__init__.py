"""Tables, figures (figures.py, forests.py) and pages from results that are already computed: Markdown, HTML, the
README's blocks. Computes no statistic of its own."""
