"""Running a study (`studies`, workflow/) and looking after it: Snakemake, Slurm, notebooks, status, verify, publish,
doctor."""
