"""What a reader sees of a study: tables, figures, one HTML page and the README's generated blocks.

Everything here is read from a folder of logs; no model is asked and nothing is computed anew, so a number on a page can
always be found in a file.
"""
