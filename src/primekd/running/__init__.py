"""Running a study and looking after it: Snakemake, Slurm, notebooks, status, verify, publish, doctor."""
