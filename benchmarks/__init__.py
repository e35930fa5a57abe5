"""Side-by-side measurements for `make bench`: time, memory and bytes against public tools and against the floor."""

import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
