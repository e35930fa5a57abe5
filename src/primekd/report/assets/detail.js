// The item browser, 3: one item with every model's answer to it, side by side.
const detail = byId("detail");
const addressOf = (item) => `#${new URLSearchParams({ item: item.id })}`;

function showNothing() {
  detail.replaceChildren(element("p", "note", "No item passes the search and the filter."));
}

function show(item, place) {
  const facts = element("p", "note", `Item ${place + 1} of ${shown.length} · `);
  const link = write(element("a"), item.id);
  link.href = addressOf(item);
  link.title = "The address of this item, to cite it";
  facts.append(link);
  const question = write(element("p", "question"), item.question);
  question.dir = "auto";
  const gold = element("p", "", "Gold answer: ");
  gold.append(write(element("strong"), item.gold));
  const cards = element("div", "answers");
  for (const place of inOrder(item)) cards.append(card(data.models[place], item.answers[place], item));
  const tokens = element("div", "tokens");
  detail.replaceChildren(facts, question, gold, cards, tokens);
  showTokens(item, tokens);
  if (!tokens.hidden) facts.append(" · ", jump(tokens));
  for (const box of cards.querySelectorAll(".response")) reveal(box);
}

// Places of the models that are shown; the one that a filter is about comes first.
function inOrder(item) {
  const places = [...item.answers.keys()].filter((place) => !hidden.has(place));
  return places.sort((one, other) => (other === pair.about) - (one === pair.about));
}

// Past the answers, to the tokens.
function jump(tokens) {
  const made = element("button", "jump", "token by token ↓");
  made.addEventListener("click", () => {
    tokens.scrollIntoView();
    tokens.querySelector(".tk").focus({ preventScroll: true });
  });
  return made;
}

// A long answer scrolls in its box: by keyboard too, and with the marked number in sight.
function reveal(box) {
  if (box.scrollHeight <= box.clientHeight) return;
  box.tabIndex = 0;
  const mark = box.querySelector(".hit") || box.querySelector("mark");
  if (!mark) return;
  const below = mark.getBoundingClientRect().bottom - box.getBoundingClientRect().top - box.clientHeight;
  if (below > 0) box.scrollTop = below + box.clientHeight / 3;
}

function card(model, answer, item) {
  const made = element("article", answer.right ? "answer is-right" : "answer is-wrong");
  const heading = element("h3", "", model.title);
  if (model.title !== model.name) heading.append(" ", element("code", "note", model.name));
  const verdict = element("p", "verdict");
  verdict.append(judged(answer.right));
  verdict.append(answer.rule === "none" ? " · no number found" : ` · read ${answer.found} by ${answer.rule}`);
  verdict.append(` · ${answer.tokens} tokens`);
  if (answer.cut) verdict.append(" · ", element("strong", "wrong", "truncated"));
  made.append(heading, verdict);
  if (answer.kl !== undefined) {
    const distance = element("p", "verdict", `KL on the teacher's answer: ${answer.kl.toPrecision(3)} nats a token`);
    distance.title = "From the teacher to this model, token by token on the teacher's answer, not on the one below";
    made.append(distance);
  }
  if (answer.byHand) made.append(decision(answer));
  made.append(response(answer));
  if (data.extractors.length) made.append(readers(answer, item));
  made.append(command(item, model));
  return made;
}

// What to type in a terminal to see where this answer came from; a click chooses all of it, to be copied.
function command(item, model) {
  const made = element("p", "note", "In a terminal: ");
  const typed = ["primekd", "show", item.id, "--model", model.name, ...data.words].map(quoted).join(" ");
  made.append(element("code", "command", typed));
  return made;
}

// A word as a shell takes it. Ids are foreign: nothing in one may run, and none may hold what a terminal obeys.
function quoted(word) {
  const plain = word.replace(/\p{C}/gu, "?");
  return /^[\w.:@%+=,/-]+$/.test(plain) ? plain : `'${plain.replaceAll("'", "'\\''")}'`;
}

function judged(right) {
  return element("strong", right ? "right" : "wrong", right ? "✓ right" : "✗ wrong");
}

function decision(answer) {
  const said = answer.byHand === NOT_FOUND ? "no answer was given" : spoken(answer.byHand);
  const made = element("p", "verdict by-hand", `Decided by hand: ${said} · `);
  made.append(judged(answer.rightByHand));
  return made;
}

function response(answer) {
  const made = element("div", "response");
  made.dir = "auto";
  const whole = answer.text.join("");
  if (!whole.trim()) {
    const empty = whole ? `(${whole.length} characters, all of them white space)` : "(empty)";
    made.append(element("span", "note", empty));
  } else {
    const found = hits(whole);
    let from = 0;
    answer.text.forEach((part, index) => {
      const place = index === 1 ? element("mark") : document.createDocumentFragment();
      made.append(write(place, part, found, from));
      from += part.length;
    });
  }
  return made;
}

// What each extractor makes of the answer.
function readers(answer, item) {
  const made = element("dl", disagrees(answer) ? "readers differ" : "readers");
  made.setAttribute("aria-label", "Values by extractor");
  readings(answer).forEach((value, place) => {
    const line = element("div");
    const text = spoken(value), right = text === item.gold;
    line.append(element("dt", "", data.extractors[place]), element("dd", right ? "right" : "wrong", text + (right ? " ✓" : " ✗")));
    made.append(line);
  });
  return made;
}
