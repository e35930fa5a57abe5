// The item browser, 3a: the teacher's answer token by token, under each model; see token_data.py for the bytes.
const LEVELS = [0.05, 0.25, 0.7, 1.5]; // nats, from which on the ground is deeper

function decoded(item) {
  if (!data.tokens || !Object.hasOwn(data.tokens.items, item.id)) return [];
  const bytes = Uint8Array.from(atob(data.tokens.items[item.id]), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer), tokens = [];
  let at = 0;
  const u16 = () => { at += 2; return view.getUint16(at - 2, true); };
  const best = () => Array.from({ length: bytes[at++] }, () => [data.tokens.texts[u16()], bytes[at++] / 255]);
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
  const shown = data.models.filter((model, place) => !hidden.has(place) && data.tokens?.models.includes(model.name));
  container.hidden = !tokens.length || !shown.length;
  if (container.hidden) return;
  const note = "The deeper a token's ground, the larger KL(teacher || model) there. Point at a token, or go to it with " +
    "Tab, for the most probable tokens of both.";
  const panels = element("div", "answers wide");
  for (const model of shown) panels.append(tokenPanel(model, tokens));
  container.replaceChildren(element("h3", "", "The teacher's answer, token by token"), element("p", "note", note), panels);
}

function tokenPanel(model, tokens) {
  const made = element("article", "answer"), run = element("div", "run"), strip = element("div", "strip note");
  const place = data.tokens.models.indexOf(model.name);
  const sum = tokens.reduce((total, token) => total + token.models[place].kl, 0);
  const heading = element("h3", "", model.title);
  heading.append(" ", element("span", "note", `KL ${sum.toFixed(2)} nats over ${tokens.length} tokens`));
  for (const token of tokens) {
    const fit = token.models[place];
    const span = element("span", `tk k${LEVELS.filter((edge) => fit.kl >= edge).length}`, ended(seen(token.text)));
    span.tabIndex = 0;
    const tell = () => strip.replaceChildren(...told(token, fit, model));
    span.addEventListener("mouseenter", tell);
    span.addEventListener("focus", tell);
    run.append(span);
  }
  strip.setAttribute("aria-live", "polite");
  made.append(heading, run, strip);
  return made;
}

const seen = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
const ended = (text) => text.replaceAll("⏎", "⏎\n");
const share = (p) => `${(100 * p).toFixed(1)} %`;

function told(token, fit, model) {
  const sure = token.written === 65535 ? "" : `, which the teacher gave ${share(token.written / 65534)}`;
  const head = element("p", "", `“${seen(token.text)}”${sure}; its entropy ${token.entropy} nats, KL ${fit.kl} nats`);
  const lists = element("div", "bests");
  for (const [name, best] of [["Teacher", token.teacher], [model.title, fit.best]]) {
    const list = element("div");
    list.append(element("strong", "", name), ...best.map(([text, p]) => element("div", "", `“${seen(text)}” ${share(p)}`)));
    lists.append(list);
  }
  return [head, lists];
}
