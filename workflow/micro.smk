# Students of text: tokenise, pretrain a control a seed, go on from it with every arm, measure, report.
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
        notebook=ROOT / "micro-KD" / "get_text.ipynb",
    output:
        notebook=f"{DONE}/micro-KD/get_text.ipynb",
        html=f"{DONE}/micro-KD/get_text.html",
    threads: HALF
    shell:
        NOTEBOOK


rule pretrain:
    input:
        LIBRARY,
        SETTINGS,
        rules.text.output,
        notebook=ROOT / "micro-KD" / "pretrain.ipynb",
    output:
        notebook=f"{DONE}/{{control}}/pretrain.ipynb",
        html=f"{DONE}/{{control}}/pretrain.html",
    params:
        seed=lambda w: seed_of(w.control),
    threads: HALF
    priority: 2  # every arm of its seed waits for it
    shell:
        f"{NOTEBOOK} --seed {{params.seed}}"


rule distill:
    input:
        LIBRARY,
        SETTINGS,
        lambda w: f"{DONE}/{SETTING.student_folder(CONTROL, int(seed_of(w.student))).name}/pretrain.ipynb",
        notebook=ROOT / "micro-KD" / "distill.ipynb",
    output:
        notebook=f"{DONE}/{{student}}/distill.ipynb",
        html=f"{DONE}/{{student}}/distill.html",
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
        [f"{DONE}/{student}/distill.ipynb" for name in ARMS for student in (name, *FURTHER[name])],
        expand(rules.pretrain.output.notebook, control=CONTROLS),
        notebook=ROOT / "micro-KD" / "assess.ipynb",
    output:
        notebook=f"{DONE}/micro-KD/assess.ipynb",
        html=f"{DONE}/micro-KD/assess.html",
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
