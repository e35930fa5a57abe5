// The item browser, 3: one item with every model's answer to it, side by side.
const detail = byId("detail");
const addressOf = (item) => `#item=${encodeURIComponent(item.id)}`;

function showNothing() {
  detail.replaceChildren(element("p", "note", "No item passes the search and the filter."));
}

function show(item, place) {
  const facts = element("p", "note", `Item ${place + 1} of ${shown.length} · `);
  const link = element("a", "", item.id);
  link.href = addressOf(item);
  link.title = "The address of this item, to cite it";
  facts.append(link);
  const question = element("p", "question", item.question);
  question.dir = "auto";
  const gold = element("p", "", "Gold answer: ");
  gold.append(element("strong", "", item.gold));
  const cards = element("div", "answers");
  item.answers.forEach((answer, model) => {
    if (!hidden.has(model)) cards.append(card(data.models[model], answer, item));
  });
  detail.replaceChildren(facts, question, gold, cards);
  for (const box of cards.querySelectorAll(".response")) reveal(box);
}

// A long answer scrolls in its box: by keyboard too, and with the marked number in sight.
function reveal(box) {
  if (box.scrollHeight <= box.clientHeight) return;
  box.tabIndex = 0;
  const mark = box.querySelector("mark");
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
  if (answer.byHand) made.append(decision(answer));
  made.append(response(answer));
  if (data.extractors.length) made.append(readers(answer, item));
  return made;
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
    answer.text.forEach((part, index) => made.append(index === 1 ? element("mark", "", part) : part));
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
