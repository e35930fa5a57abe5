// The item browser, 1: the data, what can be asked of it, and how text reaches the page.
// Questions and answers are untrusted text: they reach the page through textContent alone.
// data.js, list.js, detail.js and controls.js are put into the page in this order, in one function.
const NOT_FOUND = "-1"; // how a log writes that no value was found
const data = JSON.parse(document.getElementById("item-data").textContent);
const byId = (id) => document.getElementById(id);
const hidden = new Set(); // places of the models that are switched off
const pair = { a: 0, b: 0, about: -1 }; // places of the models that the last filters are about; `about`: of A if it counts
data.items.forEach((item, place) => { item.place = place; });

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const visible = (item) => item.answers.filter((_, place) => !hidden.has(place));
const students = (item) => item.answers.filter((_, place) => !hidden.has(place) && data.models[place].student);
const rights = (answers) => answers.filter((answer) => answer.right).length;
const longest = (item) => Math.max(0, ...visible(item).map((answer) => answer.tokens));

// The extractors' values for an answer; an answer on which all of them agree does not list them.
const readings = (answer) => answer.read || data.extractors.map(() => answer.found);

// The values that are given: files write -1 where there is none, and -1.0 for a true minus one.
const given = (answer) => readings(answer).filter((value) => value !== NOT_FOUND);
const spoken = (value) => (value === NOT_FOUND ? "none" : value === "-1.0" ? "-1" : value);

// Different values; an extractor that gives none contradicts no other.
const disagrees = (answer) => answer.read !== undefined && new Set(given(answer)).size > 1;
const lacksValue = (answer) => data.extractors.length > 0 && given(answer).length < data.extractors.length;

// Made on first use: lower-casing every answer is only worth it for someone who searches.
function haystack(item) {
  if (item.haystack === undefined) {
    const answers = item.answers.map((answer) => answer.text.join(""));
    item.haystack = [item.id, item.question, item.gold, ...answers].join("\n").toLowerCase();
  }
  return item.haystack;
}

// Does the same for all items in short steps, so that the first letter typed need not wait for it.
function warmUp(from = 0) {
  data.items.slice(from, from + 100).forEach(haystack);
  if (from + 100 < data.items.length) setTimeout(warmUp, 0, from + 100);
}

const FILTERS = {
  all: () => true,
  strategies: (item) => {
    const asked = students(item), right = rights(asked);
    return right > 0 && right < asked.length;
  },
  extractors: (item) => visible(item).some(disagrees),
  none: (item) => visible(item).some(lacksValue),
  truncated: (item) => visible(item).some((answer) => answer.cut),
  adjudicated: (item) => visible(item).some((answer) => answer.byHand),
  wrong: (item) => rights(visible(item)) === 0,
  right: (item) => rights(visible(item)) === visible(item).length,
  "a-right": (item) => item.answers[pair.a].right,
  "a-wrong": (item) => !item.answers[pair.a].right,
  "a-cut": (item) => item.answers[pair.a].cut,
  pair: (item) => item.answers[pair.a].right && !item.answers[pair.b].right,
};

// What items are sorted by, computed once for each; ties keep the order of the logs.
const SORTS = {
  file: (item) => item.place,
  hard: (item) => rights(visible(item)),
  easy: (item) => -rights(visible(item)),
  long: (item) => -longest(item),
  id: (item) => item.id,
};
data.models.forEach((model, place) => {
  SORTS[`kl:${model.name}`] = (item) => -(item.answers[place].kl ?? -Infinity); // unknown ones last
});

// What is searched for: words, all of which an item has, and a pattern that finds any of them.
let words = [], pattern = null;
function seek(text) {
  words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const escaped = words.map((word) => word.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&")).sort((a, b) => b.length - a.length);
  pattern = words.length ? new RegExp(escaped.join("|"), "giu") : null;
}

// Where in a text the search has hits, as [start, end].
function hits(text) {
  return pattern ? [...text.matchAll(pattern)].map((hit) => [hit.index, hit.index + hit[0].length]) : [];
}

// Adds text to an element, with the hits in it marked. `from`: where in a longer text, whose hits are given, it begins.
function write(parent, text, found = hits(text), from = 0) {
  let at = 0;
  for (const hit of found) {
    const start = Math.max(hit[0] - from, at), end = Math.min(hit[1] - from, text.length);
    if (start >= end) continue;
    parent.append(text.slice(at, start), element("mark", "hit", text.slice(start, end)));
    at = end;
  }
  parent.append(text.slice(at));
  return parent;
}

function matching(filter, sort) {
  const passes = FILTERS[filter], key = SORTS[sort];
  const found = data.items.filter((item) => passes(item) && words.every((word) => haystack(item).includes(word)));
  if (sort === "file") return found;
  const order = new Intl.Collator("en", { numeric: true }).compare;
  const compare = sort === "id" ? order : (a, b) => a - b;
  const keyed = found.map((item) => [key(item), item]);
  keyed.sort((a, b) => compare(a[0], b[0]) || a[1].place - b[1].place);
  return keyed.map((pair) => pair[1]);
}
