"""Runs errant's two commands on the files orig, hyp and ref; a script."""

import sys

if __name__ == "__main__":
    from errant.commands import compare_m2, parallel_to_m2

    for name in ("hyp", "ref"):
        sys.argv = ["errant_parallel", "-orig", "orig", "-cor", name, "-out", f"{name}.m2", "-tok"]
        parallel_to_m2.main()
    sys.argv = ["errant_compare", "-hyp", "hyp.m2", "-ref", "ref.m2"]
    compare_m2.main()
