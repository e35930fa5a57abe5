"""Tables, figures and pages from results that are already computed: Markdown, HTML, the README's blocks.

Computes no statistic of its own. Figures are drawn in figures.py and forests.py.
"""
