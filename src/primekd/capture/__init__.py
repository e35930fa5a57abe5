"""items x prompt x teacher -> signal store: responses and their rows, by any number of workers, resumable. How a killed
capture goes on is in workers.py and run.py; the files themselves are written by `signals`."""
