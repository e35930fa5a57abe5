// The item browser, 2: the list. Only rows in sight are in the page, so that thousands of items cost no more than ten.
const SPARE = 4; // rows drawn above and below those in sight
const list = byId("list");
const track = element("div", "track"); // as high as all rows together
track.setAttribute("role", "presentation");
list.append(track);
const rows = new Map(); // place in `shown` -> its row in the page
let shown = []; // the items that pass search and filter, in order
let chosen = null;
let rowHeight = 0;

function draw(items) {
  shown = items;
  rows.clear();
  track.replaceChildren();
  list.scrollTop = 0;
  measure();
  paint();
}

function measure() {
  const probe = element("div", "row", "0");
  track.append(probe);
  rowHeight = probe.offsetHeight || 68;
  probe.remove();
  track.style.height = `${rowHeight * shown.length}px`;
}

function paint() {
  const first = Math.max(0, Math.floor(list.scrollTop / rowHeight) - SPARE);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / rowHeight) + SPARE);
  const kept = chosen ? shown.indexOf(chosen) : -1; // aria-activedescendant must point at a row that exists
  for (const [place, made] of rows) {
    if ((place < first || place >= last) && place !== kept) {
      made.remove();
      rows.delete(place);
    }
  }
  const wanted = kept >= 0 ? [kept] : [];
  for (let place = first; place < last; place++) wanted.push(place);
  for (const place of wanted) {
    if (!rows.has(place)) {
      const made = row(shown[place], place);
      rows.set(place, made);
      track.append(made);
    }
  }
}

function row(item, place) {
  const made = element("div", "row");
  made.id = `row-${item.place}`;
  made.setAttribute("role", "option");
  made.setAttribute("aria-selected", String(item === chosen));
  made.setAttribute("aria-posinset", String(place + 1));
  made.setAttribute("aria-setsize", String(shown.length));
  made.style.top = `${place * rowHeight}px`;
  const text = write(element("div", "text"), excerpt(item.question));
  text.dir = "auto";
  const signs = element("div", "signs");
  signs.setAttribute("role", "img");
  signs.setAttribute("aria-label", `${rights(visible(item))} of ${visible(item).length} right`);
  for (const answer of visible(item)) signs.append(element("span", answer.right ? "right" : "wrong", answer.right ? "✓" : "✗"));
  const marks = ["truncated", "adjudicated"].filter((name) => FILTERS[name](item));
  if (FILTERS.extractors(item)) marks.push("extractors disagree");
  if (marks.length) signs.append(element("span", "note", ` ${marks.join(" · ")}`));
  made.append(text, signs);
  made.addEventListener("click", () => {
    select(item);
    remember(true);
  });
  return made;
}

// A row shows two lines: they begin a little before the first hit where that would be out of sight.
function excerpt(text) {
  const first = hits(text)[0];
  return first && first[0] > 60 ? `… ${text.slice(text.indexOf(" ", first[0] - 30) + 1 || first[0])}` : text;
}

function select(item) {
  const before = chosen && byId(`row-${chosen.place}`);
  if (before) before.setAttribute("aria-selected", "false");
  chosen = item;
  if (!item) {
    list.removeAttribute("aria-activedescendant");
    showNothing();
    return;
  }
  const place = shown.indexOf(item);
  // Not scrollIntoView: it would move the page as well.
  if (place * rowHeight < list.scrollTop) list.scrollTop = place * rowHeight;
  const below = (place + 1) * rowHeight - list.clientHeight;
  if (below > list.scrollTop) list.scrollTop = below;
  paint();
  const here = rows.get(place);
  here.setAttribute("aria-selected", "true");
  list.setAttribute("aria-activedescendant", here.id);
  show(item, place);
}

let painting = false;
function paintSoon() {
  if (painting) return;
  painting = true;
  requestAnimationFrame(() => {
    painting = false;
    paint();
  });
}
list.addEventListener("scroll", paintSoon);
