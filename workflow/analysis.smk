# Inside the students of an assessment: a part of its own (`primekd run --only inside`), which no report waits for.
def analysis(name):
    return ROOT / "analysis" / f"{name}.ipynb"


rule attention:
    input:
        rules.assess.output,
        notebook=analysis("attention"),
    output:
        notebook=f"{DONE}/analysis/attention.ipynb",
        html=f"{DONE}/analysis/attention.html",
    threads: THREADS
    shell:
        NOTEBOOK


rule confidence:
    input:
        rules.attention.output,  # it puts both parts together
        notebook=analysis("confidence"),
    output:
        notebook=f"{DONE}/analysis/confidence.ipynb",
        html=f"{DONE}/analysis/confidence.html",
    threads: THREADS
    shell:
        NOTEBOOK


rule inside:
    input:
        rules.confidence.output,
    output:
        touch(f"{DONE}/inside.done"),
    shell:
        "{PRIMEKD} report --profile {PROFILE:q}"
