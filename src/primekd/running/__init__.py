"""Running a study and looking after it: Snakemake, Slurm, notebooks, status, verify, publish, doctor.

What is run stands in the study's recipe (`studies`) and in workflow/.
"""
