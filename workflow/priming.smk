# The priming study: prepare the teacher, capture and distill every arm, score all models, assess, report.
from primekd.config.arm import OWN, split_seed
from primekd.studies.priming import further_seeds, models

# A job scores several models, one after the other, where they would wait for each other anyway: to start Python and load
# the libraries takes as long as dozens of answers. The first job has the control, which answers longest and waits for no
# training, and the student that needs no teacher and is trained first, so it mostly starts first.
MODELS = models(SETTING)
SCORED = scoring_jobs(MODELS)
# Where all models are scored already, they stay shared out as they were: on a machine with other cores nothing is redone,
# unless everything is to be.
STAMPS = [path.stem for path in Path(DONE, "scored").glob("*.done")]
if sorted("+".join(STAMPS).split("+")) == sorted(MODELS) and not config.get("force"):
    SCORED = sorted(STAMPS, key=lambda stamp: MODELS.index(stamp.split("+")[0]))
if SETTING.assess.engine == "vllm":  # it answers for all of them in the rule assess, from one loaded base
    SCORED = []


FURTHER = {name: [f"{name}-seed{seed}" for seed in SETTING.seeds.get(name, ())] for name in ARMS}  # its other seeds


wildcard_constraints:
    strategy="|".join(ARMS),
    student="|".join([*ARMS, *(name for names in FURTHER.values() for name in names)]),
    models=r"[^/]+",
    worker=r"\d+",


def arm_of(w):
    return ARMS[split_seed(w.student)[0]]


# Where arms are many, all seeds of one are trained in one notebook: to start Python and load the libraries takes as long as
# a small training. Where they are few, side by side is sooner.
ONE_BY_ONE = SLURM or len(ARMS) < 8 * workflow.cores // HALF


def of_student(w):
    name, seed = split_seed(w.student)
    behind = [] if ONE_BY_ONE else [f"--further {other}" for other in SETTING.seeds.get(name, ())]
    return " ".join([f"--strategy {name} --seed {seed or SETTING.seed}", *behind])


def trained(name):
    return [f"{DONE}/{student}/distill.ipynb" for student in [name, *(FURTHER[name] if ONE_BY_ONE else [])]]


def text_of(w):
    """The capture that an arm's responses are taken from, if it does not write its own."""
    text = ARMS[w.strategy].text
    return [] if text == OWN else f"{DONE}/{text}/inference_gsm8k.ipynb"


rule teacher:
    input:
        LIBRARY,
        SETTINGS,
        TAUGHT_WITH,
    output:
        touch(f"{DONE}/teacher.done"),
    threads: HALF
    priority: 3  # all captures wait for it
    shell:
        "{PRIMEKD} prepare-teacher --profile {PROFILE:q}"


rule capture_part:
    input:
        LIBRARY,
        SETTINGS,
        rules.teacher.output,
        text_of,
    output:
        touch(f"{DONE}/{{strategy}}/captured-{{worker}}-of-{WORKERS}.done"),
    threads: HALF
    priority: 2
    shell:
        "{WITH_TEACHER}{PRIMEKD} capture {wildcards.strategy} --profile {PROFILE:q}"


rule capture:
    input:
        LIBRARY,
        SETTINGS,
        rules.teacher.output,
        text_of,
        expand(rules.capture_part.output, worker=range(1, WORKERS + 1), allow_missing=True) if WORKERS > 1 else [],
        notebook=lambda w: ROOT / ARMS[w.strategy].folder / "inference_gsm8k.ipynb",
    output:
        notebook=f"{DONE}/{{strategy}}/inference_gsm8k.ipynb",
        html=f"{DONE}/{{strategy}}/inference_gsm8k.html",
    params:
        further=lambda w: further_seeds(SETTING, w.strategy),
    threads: HALF
    priority: 2
    shell:
        f"{{WITH_TEACHER}}{NOTEBOOK} {OF_STRATEGY} && for seed in {{params.further}}; do {{WITH_TEACHER}}{PRIMEKD} capture "
        "{wildcards.strategy} --profile {PROFILE:q} --seed $seed || exit 1; done"


rule distill:
    input:
        LIBRARY,
        SETTINGS,
        lambda w: f"{DONE}/{arm_of(w).store}/inference_gsm8k.ipynb" if arm_of(w).store else [],
        lambda w: rules.teacher.output if arm_of(w).live or arm_of(w).by_place else [],
        lambda w: f"{DONE}/assessment/teacher.ipynb" if arm_of(w).keep_right else [],
        notebook=lambda w: ROOT / arm_of(w).folder / "distill.ipynb",
    output:
        notebook=f"{DONE}/{{student}}/distill.ipynb",
        html=f"{DONE}/{{student}}/distill.html",
    params:
        student=of_student,
    threads: HALF
    priority: 1  # before what is scored: trainings take longest, and what waits for them comes last
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
    priority: 2  # early, so that scoring fills the gaps that trainings leave
    shell:
        "{WITH_TEACHER}{PRIMEKD} capture --held-out --profile {PROFILE:q}"


rule primed:
    input:
        LIBRARY,
        SETTINGS,
        rules.reference.output,
        [f"{DONE}/{name}/inference_gsm8k.ipynb" for name, arm in ARMS.items() 
         if arm.store == name and arm.text == OWN and not arm.deviates],
        notebook=ROOT / "assessment" / "teacher.ipynb",
    output:
        notebook=f"{DONE}/assessment/teacher.ipynb",
        html=f"{DONE}/assessment/teacher.html",
    threads: HALF
    priority: 2
    shell:
        f"{{WITH_TEACHER}}{NOTEBOOK}"


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
        rules.teacher.output,
        rules.reference.output,
        rules.primed.output,
        [path for name in ARMS for path in trained(name)],
        expand(rules.score.output, models=SCORED),
        notebook=ROOT / "assessment" / "assess.ipynb",
    output:
        notebook=f"{DONE}/assessment/assess.ipynb",
        html=f"{DONE}/assessment/assess.html",
    threads: THREADS
    shell:
        NOTEBOOK


rule ablation:
    input:
        rules.assess.output,
        notebook=ROOT / "assessment" / "ablation.ipynb",
    output:
        notebook=f"{DONE}/assessment/ablation.ipynb",
        html=f"{DONE}/assessment/ablation.html",
    threads: HALF
    shell:
        NOTEBOOK


rule report:
    localrule: True
    input:
        rules.assess.output,
        rules.ablation.output if any(arm.deviates for arm in ARMS.values()) else [],
    output:
        touch(f"{DONE}/report.done"),
    shell:
        "{PRIMEKD} report --profile {PROFILE:q}"


include: "analysis.smk"


ONLY = {  # what `primekd run --only` asks for
    "teacher": rules.primed.output.notebook,
    "inside": rules.inside.output,
    "ablation": rules.ablation.output.notebook,
}
