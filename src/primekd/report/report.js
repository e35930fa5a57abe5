// The item browser. Questions and answers are untrusted text: they reach the page through textContent alone.
"use strict";
(() => {
  const CHUNK = 120; // rows added to the list at a time, so that a thousand items cost no more than a hundred
  const data = JSON.parse(document.getElementById("item-data").textContent);
  const byId = (id) => document.getElementById(id);
  const list = byId("list"), detail = byId("detail"), search = byId("search"), filter = byId("filter"), sort = byId("sort");
  const hidden = new Set(); // places of the models that are switched off
  let shown = []; // the items that pass search and filter, in order
  let drawn = 0; // how many of them have a row
  let chosen = null;

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  data.items.forEach((item, place) => { item.place = place; });
  const visible = (item) => item.answers.filter((_, place) => !hidden.has(place));
  const rights = (item) => visible(item).filter((answer) => answer.right).length;
  const longest = (item) => Math.max(0, ...visible(item).map((answer) => answer.tokens));

  // Made on first use: lower-casing every answer is only worth it for someone who searches.
  function haystack(item) {
    if (item.haystack === undefined) {
      const answers = item.answers.map((answer) => answer.text.join(""));
      item.haystack = [item.id, item.question, item.gold, ...answers].join("\n").toLowerCase();
    }
    return item.haystack;
  }

  const FILTERS = {
    all: () => true,
    disagree: (item) => rights(item) > 0 && rights(item) < visible(item).length,
    truncated: (item) => visible(item).some((answer) => answer.cut),
    wrong: (item) => rights(item) === 0,
    right: (item) => rights(item) === visible(item).length,
  };
  const SORTS = {
    file: () => 0,
    hard: (a, b) => rights(a) - rights(b),
    easy: (a, b) => rights(b) - rights(a),
    long: (a, b) => longest(b) - longest(a),
    id: (a, b) => a.id.localeCompare(b.id, "en", { numeric: true }),
  };

  function update() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = data.items.filter((item) => FILTERS[filter.value](item) && words.every((word) => haystack(item).includes(word)));
    shown.sort((a, b) => SORTS[sort.value](a, b) || a.place - b.place);
    list.replaceChildren();
    list.scrollTop = 0;
    drawn = 0;
    byId("count").textContent = `${shown.length} of ${data.items.length} items.`;
    draw(CHUNK);
    select(shown.includes(chosen) ? chosen : shown[0] || null, true);
  }

  function draw(until) {
    const rows = document.createDocumentFragment();
    for (; drawn < Math.min(until, shown.length); drawn++) rows.append(row(shown[drawn]));
    list.append(rows);
  }

  function row(item) {
    const made = element("div", "row");
    made.id = `row-${item.place}`;
    made.setAttribute("role", "option");
    made.setAttribute("aria-selected", "false");
    const text = element("div", "text", item.question);
    text.dir = "auto";
    const signs = element("div", "signs");
    signs.setAttribute("role", "img");
    signs.setAttribute("aria-label", `${rights(item)} of ${visible(item).length} right`);
    for (const answer of visible(item)) signs.append(element("span", answer.right ? "right" : "wrong", answer.right ? "✓" : "✗"));
    if (visible(item).some((answer) => answer.cut)) signs.append(element("span", "note", " … truncated"));
    made.append(text, signs);
    made.addEventListener("click", () => select(item, false));
    return made;
  }

  function select(item, quiet) {
    const before = chosen && byId(`row-${chosen.place}`);
    if (before) before.setAttribute("aria-selected", "false");
    chosen = item;
    list.removeAttribute("aria-activedescendant");
    detail.replaceChildren();
    if (!item) {
      detail.append(element("p", "note", "No item passes the search and the filter."));
      return;
    }
    const place = shown.indexOf(item);
    draw(place + CHUNK / 2);
    const here = byId(`row-${item.place}`);
    here.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", here.id);
    // Not scrollIntoView: it would move the page as well.
    if (here.offsetTop < list.scrollTop) list.scrollTop = here.offsetTop;
    const below = here.offsetTop + here.offsetHeight - list.clientHeight;
    if (below > list.scrollTop) list.scrollTop = below;
    show(item, place);
    if (!quiet) remember(item);
  }

  function show(item, place) {
    detail.append(element("p", "note", `Item ${place + 1} of ${shown.length} · ${item.id}`));
    const question = element("p", "question", item.question);
    question.dir = "auto";
    detail.append(question);
    const gold = element("p", "", "Gold answer: ");
    gold.append(element("strong", "", item.gold));
    detail.append(gold);
    const cards = element("div", "answers");
    item.answers.forEach((answer, model) => {
      if (!hidden.has(model)) cards.append(card(data.models[model], answer));
    });
    detail.append(cards);
  }

  function card(model, answer) {
    const made = element("article", answer.right ? "answer is-right" : "answer is-wrong");
    const heading = element("h3", "", model.title);
    if (model.title !== model.name) heading.append(" ", element("code", "note", model.name));
    const verdict = element("p", "verdict");
    verdict.append(element("strong", answer.right ? "right" : "wrong", answer.right ? "✓ right" : "✗ wrong"));
    verdict.append(answer.rule === "none" ? " · no number found" : ` · read ${answer.found} by ${answer.rule}`);
    if (answer.byHand) verdict.append(` · decided by hand: ${answer.byHand}`);
    verdict.append(` · ${answer.tokens} tokens`);
    if (answer.cut) verdict.append(" · ", element("strong", "wrong", "truncated"));
    const response = element("div", "response");
    response.dir = "auto";
    const whole = answer.text.join("");
    if (!whole.trim()) {
      const empty = whole ? `(${whole.length} characters, all of them white space)` : "(empty)";
      response.append(element("span", "note", empty));
    } else {
      answer.text.forEach((part, index) => response.append(index === 1 ? element("mark", "", part) : part));
    }
    made.append(heading, verdict, response);
    return made;
  }

  // The address names the item, so that a finding can be sent to someone as a link.
  function remember(item) {
    try {
      history.replaceState(null, "", `#item=${encodeURIComponent(item.id)}`);
    } catch {
      // A page without a history can still be read.
    }
  }

  function recall() {
    const match = /^#item=(.*)$/.exec(location.hash);
    if (!match) return;
    let id = match[1];
    try {
      id = decodeURIComponent(id);
    } catch {
      // Not one of our own addresses; look for it as it is.
    }
    const item = data.items.find((candidate) => candidate.id === id);
    if (!item) return;
    search.value = "";
    filter.value = "all";
    update();
    select(item, true);
    byId("items").scrollIntoView();
  }

  function move(event) {
    const here = shown.indexOf(chosen);
    const steps = { ArrowDown: here + 1, ArrowUp: here - 1, PageDown: here + 10, PageUp: here - 10, Home: 0, End: shown.length - 1 };
    const inSearch = event.currentTarget === search;
    if (!(event.key in steps) || !shown.length || event.altKey || event.ctrlKey || event.metaKey) return;
    if (inSearch && (event.key === "Home" || event.key === "End")) return; // these move the cursor in the box
    event.preventDefault();
    select(shown[Math.min(Math.max(steps[event.key], 0), shown.length - 1)], false);
  }

  data.models.forEach((model, place) => {
    const label = element("label"), box = element("input");
    box.type = "checkbox";
    box.checked = true;
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(place);
      else hidden.add(place);
      update();
    });
    label.append(box, ` ${model.title}`);
    byId("models").append(label);
  });
  let waiting;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(update, 120);
  });
  filter.addEventListener("change", update);
  sort.addEventListener("change", () => {
    chosen = null; // a new order is read from its top
    update();
  });
  list.addEventListener("keydown", move);
  search.addEventListener("keydown", move);
  list.addEventListener("scroll", () => {
    if (list.scrollTop + 2 * list.clientHeight > list.scrollHeight) draw(drawn + CHUNK);
  });
  addEventListener("hashchange", recall);
  byId("browser").hidden = false;
  update();
  recall();
})();
