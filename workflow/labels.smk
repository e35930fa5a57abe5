# Pseudo-labels: prepare the teacher, have it label the training sentences, distill every arm, score, assess, report.
from primekd.config.arm import split_seed
from primekd.studies.priming import further_seeds, models

MODELS = models(SETTING)
SCORED = scoring_jobs(MODELS)  # see priming.smk
FURTHER = {name: [f"{name}-seed{seed}" for seed in SETTING.seeds.get(name, ())] for name in ARMS}  # its other seeds
OF_LABELS = f"--strategy base-KD --seed {SETTING.seed}"


wildcard_constraints:
    student="|".join([*ARMS, *(name for names in FURTHER.values() for name in names)]),
    models=r"[^/]+",


def of_student(w):
    name, seed = split_seed(w.student)
    return f"--strategy {name} --seed {seed or SETTING.seed}"


def trained(name):
    return [f"{DONE}/{student}/distill.ipynb" for student in [name, *FURTHER[name]]]


rule data:
    input:
        LIBRARY,
        SETTINGS,
        notebook=ROOT / "api-KD" / "get_data.ipynb",
    output:
        notebook=f"{DONE}/api-KD/get_data.ipynb",
        html=f"{DONE}/api-KD/get_data.html",
    threads: HALF
    shell:
        NOTEBOOK


rule teacher:
    input:
        LIBRARY,
        SETTINGS,
        TAUGHT_WITH,
    output:
        touch(f"{DONE}/teacher.done"),
    threads: HALF
    priority: 3  # all else waits for it
    shell:
        "{PRIMEKD} prepare-teacher --profile {PROFILE:q}" if SETTING.prepare else "true"


rule label:
    input:
        LIBRARY,
        SETTINGS,
        rules.teacher.output,
        notebook=ROOT / "api-KD" / "label.ipynb",
    output:
        notebook=f"{DONE}/api-KD/label.ipynb",
        html=f"{DONE}/api-KD/label.html",
    params:
        further=further_seeds(SETTING, "base-KD"),
    threads: HALF
    priority: 2
    shell:
        f"{NOTEBOOK} {OF_LABELS} && for seed in {{params.further}}; do {PRIMEKD} capture "
        "base-KD --profile {PROFILE:q} --seed $seed || exit 1; done"


rule distill:
    input:
        LIBRARY,
        SETTINGS,
        lambda w: rules.label.output if ARMS[split_seed(w.student)[0]].teacher else [],
        notebook=ROOT / "api-KD" / "distill.ipynb",
    output:
        notebook=f"{DONE}/{{student}}/distill.ipynb",
        html=f"{DONE}/{{student}}/distill.html",
    params:
        student=of_student,
    threads: HALF
    priority: 1
    shell:
        f"{NOTEBOOK} {{params.student}}"


rule reference:
    input:
        LIBRARY,
        SETTINGS,
        rules.teacher.output,
    output:
        touch(f"{DONE}/reference.done"),
    threads: HALF
    priority: 2
    shell:
        "{PRIMEKD} capture --held-out --profile {PROFILE:q}"


rule score:
    input:
        LIBRARY,
        SETTINGS,
        rules.reference.output,
        lambda w: [path for name in w.models.split("+") if name in ARMS for path in trained(name)],
    output:
        touch(f"{DONE}/scored/{{models}}.done"),
    params:
        models=lambda w: [word for name in w.models.split("+") for word in ("--model", name)],
    threads: HALF
    shell:
        "{PRIMEKD} assess {params.models} --profile {PROFILE:q}"


rule assess:
    input:
        LIBRARY,
        SETTINGS,
        rules.data.output,
        rules.reference.output,
        [path for name in ARMS for path in trained(name)],
        expand(rules.score.output, models=SCORED),
        notebook=ROOT / "api-KD" / "assess.ipynb",
    output:
        notebook=f"{DONE}/api-KD/assess.ipynb",
        html=f"{DONE}/api-KD/assess.html",
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
