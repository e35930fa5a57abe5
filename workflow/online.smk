# Online distillation: tokenise, train the control and every arm from the same fresh weights, measure, report.
from primekd.config.arm import CONTROL, split_seed
from primekd.studies.micro import seeds_of

FURTHER = {name: [f"{name}-seed{seed}" for seed in SETTING.seeds.get(name, ())] for name in ARMS}  # its other seeds
CONTROLS = [SETTING.student_folder(CONTROL, seed).name for seed in seeds_of(SETTING)]


wildcard_constraints:
    control="|".join(CONTROLS),
    student="|".join([*ARMS, *(name for names in FURTHER.values() for name in names)]),


def seed_of(name):
    return split_seed(name)[1] or SETTING.seed


rule text:
    input:
        LIBRARY,
        SETTINGS,
        notebook=ROOT / "distil-llama" / "get_text.ipynb",
    output:
        notebook=f"{DONE}/distil-llama/get_text.ipynb",
        html=f"{DONE}/distil-llama/get_text.html",
    threads: HALF
    shell:
        NOTEBOOK


rule pretrain:
    input:
        LIBRARY,
        SETTINGS,
        rules.text.output,
        notebook=ROOT / "distil-llama" / "train.ipynb",
    output:
        notebook=f"{DONE}/{{control}}/train.ipynb",
        html=f"{DONE}/{{control}}/train.html",
    params:
        seed=lambda w: seed_of(w.control),
    threads: HALF
    shell:
        f"{NOTEBOOK} --strategy control --seed {{params.seed}}"


rule distill:
    input:
        LIBRARY,
        SETTINGS,
        rules.text.output,
        notebook=ROOT / "distil-llama" / "train.ipynb",
    output:
        notebook=f"{DONE}/{{student}}/train.ipynb",
        html=f"{DONE}/{{student}}/train.html",
    params:
        student=lambda w: f"--strategy {split_seed(w.student)[0]} --seed {seed_of(w.student)}",
    threads: HALF
    priority: 1
    shell:
        f"{NOTEBOOK} {{params.student}}"


rule assess:
    input:
        LIBRARY,
        SETTINGS,
        [f"{DONE}/{student}/train.ipynb" for name in ARMS for student in (name, *FURTHER[name])],
        expand(rules.pretrain.output.notebook, control=CONTROLS),
        notebook=ROOT / "distil-llama" / "assess.ipynb",
    output:
        notebook=f"{DONE}/distil-llama/assess.ipynb",
        html=f"{DONE}/distil-llama/assess.html",
    threads: THREADS
    shell:
        NOTEBOOK


rule report:
    localrule: True
    input:
        rules.assess.output,
    output:
        touch(f"{DONE}/report.done"),
    shell:
        "{PRIMEKD} report --profile {PROFILE:q}"


ONLY = {}
