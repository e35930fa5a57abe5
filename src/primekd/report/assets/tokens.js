// The item browser, 3a: the teacher's answer token by token, under each model; see token_data.py for the bytes.
const LEVELS = [0.05, 0.25, 0.7, 1.5]; // nats, from which on the ground is deeper

function decoded(item) {
  if (!data.tokens || !Object.hasOwn(data.tokens.items, item.id)) return [];
  const bytes = Uint8Array.from(atob(data.tokens.items[item.id]), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer), tokens = [];
  let at = 0;
  const u16 = () => { at += 2; return view.getUint16(at - 2, true); };
  const best = () => Array.from({ length: bytes[at++] }, () => [data.tokens.texts[u16()], u16()]);
  while (at < bytes.length) {
    const token = { text: data.tokens.texts[u16()], entropy: u16() / 1000, written: u16(), teacher: best(), models: [] };
    for (const name of data.tokens.models) token.models.push({ name, kl: u16() / 1000, best: best() });
    tokens.push(token);
  }
  return tokens;
}

// Fills `container`, which stands below the answers to `item`.
function showTokens(item, container) {
  const tokens = decoded(item);
  const shown = inOrder(item).filter((place) => data.tokens?.models.includes(data.models[place].name));
  container.hidden = !tokens.length || !shown.length;
  if (container.hidden) return;
  const note = element("p", "note", "Ground: the teacher's entropy, and under each model KL(teacher || model), from ");
  LEVELS.forEach((edge, level) => note.append(element("span", `k${level + 1}`, edge), " "));
  note.append("nats on. Point at a token, or go to one with Tab and the arrow keys, for its most probable tokens from " +
    "0.05 % on. ", element("span", "parts", "Underlined"), ": where the model's own answer first differs from the teacher's.");
  const sum = tokens.reduce((total, token) => total + token.entropy, 0) / tokens.length;
  const panels = element("div", "answers wide");
  panels.append(tokenPanel("Teacher, unprimed", `entropy ${sum.toFixed(3)} nats a token`, tokens, -1, (t) => t.entropy, taught));
  for (const place of shown) panels.append(modelPanel(data.models[place], tokens, parting(tokens, item.answers[place])));
  container.replaceChildren(element("h3", "", "The teacher's answer, token by token"), note, panels);
}

// Which of the teacher's tokens is the first that the model's own answer has not; -1 where it has all, or if characters
// are in parts.
function parting(tokens, answer) {
  const own = answer.text.join("");
  let at = 0;
  if (tokens.some((token) => token.text.includes("\ufffd"))) return -1;
  return tokens.findIndex((token, place) => {
    const ended = place === tokens.length - 1 && at === own.length; // the last token ends the answer, and is no text
    const same = ended || own.startsWith(token.text, at);
    at += token.text.length;
    return !same;
  });
}

function modelPanel(model, tokens, parts) {
  const fit = (token) => token.models[data.tokens.models.indexOf(model.name)];
  const sum = tokens.reduce((total, token) => total + fit(token).kl, 0);
  const said = `KL ${sum.toFixed(2)} nats over ${tokens.length} tokens`;
  const tell = (token) => told(token, `, KL ${fit(token).kl.toFixed(3)} nats`, [["Teacher", token.teacher], [model.title, fit(token).best]]);
  return tokenPanel(model.title, said, tokens, parts, (token) => fit(token).kl, tell);
}

const taught = (token) => told(token, "", [["Teacher", token.teacher]]);

// `nats`: what a token is coloured by. `tell`: what the strip below says of it.
function tokenPanel(title, said, tokens, parts, nats, tell) {
  const made = element("article", "answer"), run = element("div", "run"), strip = element("div", "strip note");
  const heading = element("h3", "", title);
  heading.append(" ", element("span", "note", said));
  tokens.forEach((token, place) => {
    const level = LEVELS.filter((edge) => nats(token) >= edge).length;
    const span = element("span", `tk k${level}${place === parts ? " parts" : ""}`, ended(seen(token.text)));
    span.tabIndex = place ? -1 : 0; // one stop for Tab a panel, arrows within it
    const show = () => {
      strip.replaceChildren(...tell(token));
      if (place === parts) strip.append(element("p", "", "Here the model's own answer first differs."));
    };
    span.addEventListener("mouseenter", show);
    span.addEventListener("focus", () => {
      for (const other of run.children) other.tabIndex = other === span ? 0 : -1;
      show();
    });
    run.append(span);
  });
  run.addEventListener("keydown", walk);
  strip.setAttribute("aria-live", "polite");
  made.append(heading, run, strip);
  return made;
}

function walk(event) {
  const all = [...event.currentTarget.children], here = all.indexOf(document.activeElement);
  const next = all[{ ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: all.length - 1 }[event.key]];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

const seen = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
const ended = (text) => text.replaceAll("⏎", "⏎\n");
const share = (tenths) => `${(tenths / 10).toFixed(1)} %`;

// `lists`: (title, most probable tokens) side by side.
function told(token, distance, lists) {
  const sure = token.written === 65535 ? "" : `, which the teacher gave ${share(token.written)}`;
  const head = element("p", "", `“${seen(token.text)}”${sure}; its entropy ${token.entropy.toFixed(3)} nats${distance}`);
  const bests = element("div", "bests");
  for (const [name, best] of lists) {
    const list = element("div");
    list.append(element("strong", "", name), ...best.map(([text, p]) => element("div", "", `“${seen(text)}” ${share(p)}`)));
    bests.append(list);
  }
  return [head, bests];
}
