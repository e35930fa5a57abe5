"""An answer of the teacher, token by token: the deeper a token's ground, the further a model is from the teacher there.
Pointing at a token, or Tab to it, shows the most probable tokens of both below the text."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from primekd.assessment.tokens import Token, TokenLog, visible
from primekd.report.formats import percent, tenths
from primekd.report.shown import Shown
from primekd.statistics.families import title_of

LEVELS = (0.05, 0.25, 0.7, 1.5)  # nats, from which on the ground is deeper
SAMPLES = Markup(" ").join(Markup('<span class="k{}">{}</span>').format(n, edge) for n, edge in enumerate(LEVELS, 1))
SCALE = Markup("from {} nats on. Point at a token, or Tab to it, for its distributions from 0.05 % on.").format(SAMPLES)


def level(nats: float) -> int:
    """How deep a token's ground is, 0 to 4."""
    return sum(nats >= edge for edge in LEVELS)


def models_view(log: TokenLog, item: str, models: Sequence[str]) -> Shown:
    """The teacher's answer, coloured by its own entropy, then under each model, coloured by KL(teacher || model)."""
    first = _taught("Teacher, unprimed", log.tokens(item, models[:1]))
    panels = [first, *(_fitted(model, log.tokens(item, [model])) for model in models)]
    return _side(panels, "Ground: the teacher's entropy, and under each model KL(teacher || model),")


def tokens_view(answers: Mapping[str, list[Token]]) -> Shown:
    """An answer under each model (name -> tokens), coloured by KL(teacher || model)."""
    return _side([_fitted(model, tokens) for model, tokens in answers.items()], "Ground: KL(teacher || model),")


def teachers_view(answers: dict[str, list[Token]]) -> Shown:
    """Answers of the teacher under several primings (title -> tokens), coloured by its own entropy."""
    return _side([_taught(title, tokens) for title, tokens in answers.items()], "Ground: the teacher's entropy,")


def _fitted(model: str, tokens: list[Token]) -> Shown:
    total = sum(t.kl[model] for t in tokens)
    title = f"{title_of(model)}: KL to the teacher {total:.2f} nats over {len(tokens)} tokens"
    return _panel(title, [(t.text, t.kl[model], _tip(t, model)) for t in tokens])


def _taught(title: str, tokens: list[Token]) -> Shown:
    mean = sum(t.entropy for t in tokens) / max(1, len(tokens))
    said = f"{title}: {len(tokens)} tokens, entropy {mean:.3f} nats a token"
    return _panel(said, [(t.text, t.entropy, _tip(t)) for t in tokens])


def _side(panels: list[Shown], note: str) -> Shown:
    inner = Markup("").join(Markup(panel.html) for panel in panels)
    html = Markup('<div class="side wide">{}</div><p class="note">{} {}</p>').format(inner, note, SCALE)
    return Shown(str(html), "\n\n".join(panel.text for panel in panels))


def _panel(title: str, tokens: list[tuple[str, float, Markup]]) -> Shown:
    mark = Markup('<span class="tk k{}" tabindex="0">{}<span class="tip" role="note">{}</span></span>').format
    # A line end is seen, and is one.
    spans = [mark(level(nats), visible(text).replace("⏎", "⏎\n"), tip) for text, nats, tip in tokens]
    html = Markup('<figure class="tokens"><figcaption>{}</figcaption><div class="run">{}</div></figure>').format(
        title, Markup("").join(spans)
    )
    marked = "".join(f"[{text}|{nats:.2f}]" if level(nats) > 1 else text for text, nats, _ in tokens)
    return Shown(str(html), f"{title}\n{marked}")


def _tip(token: Token, model: str | None = None) -> Markup:
    sure = "" if token.written is None else f", probability of this token {percent(token.written)} %"
    told = f"“{visible(token.text)}”: teacher's entropy {token.entropy:.3f} nats{sure}"
    columns = [("Teacher", token.teacher)]
    if model is not None:
        told += f"; KL {token.kl[model]:.3f} nats"
        columns.append((title_of(model), token.top[model]))
    best = Markup('<span class="best"><b>{}</b>{}</span>').format
    lists = Markup("").join(best(name, _best(likely)) for name, likely in columns)
    return Markup('<span class="told">{}</span>{}').format(told, lists)


def _best(best: list[tuple[str, float]]) -> Markup:
    line = Markup("<span>“{}” {} %</span>")
    return Markup("").join(line.format(visible(text), percent(p)) for text, p in best if tenths(p))
