// The item browser, 4: search, filter, sort, keyboard, and the address.
const search = byId("search"), filter = byId("filter"), sort = byId("sort");
let started = false; // until then the address is what the reader came with

function update() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  draw(matching(words, filter.value, sort.value));
  byId("count").textContent = `${shown.length} of ${data.items.length} items.`;
  // An address that names an item names the one that is shown; without one, it is left alone until the reader chooses.
  select(shown.includes(chosen) ? chosen : shown[0] || null, !(started && location.hash.startsWith("#item=")));
}

// How many items each filter would leave, for the models that are shown.
function countFilters() {
  for (const option of filter.options) {
    option.dataset.name ??= option.textContent;
    option.textContent = `${option.dataset.name} (${data.items.filter(FILTERS[option.value]).length})`;
    if (option.value === "extractors" || option.value === "none") option.disabled = !data.extractors.length;
  }
}

// The address names the item, so that a finding can be sent to someone as a link.
function remember(item) {
  try {
    history.replaceState(null, "", addressOf(item));
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
  if (!shown.includes(item)) {
    search.value = "";
    filter.value = "all";
    update();
  }
  select(item, false);
  byId("items").scrollIntoView();
}

function move(event) {
  if (!shown.length || event.altKey || event.ctrlKey || event.metaKey) return;
  const here = shown.indexOf(chosen), page = Math.max(1, Math.floor(list.clientHeight / rowHeight) - 1);
  const steps = { ArrowDown: here + 1, ArrowUp: here - 1, PageDown: here + page, PageUp: here - page, Home: 0, End: shown.length - 1 };
  const inSearch = event.currentTarget === search;
  if (!(event.key in steps)) return;
  if (inSearch && (event.key === "Home" || event.key === "End")) return; // these move the cursor in the box
  event.preventDefault();
  select(shown[Math.min(Math.max(steps[event.key], 0), shown.length - 1)], false);
}

// `/` goes to the search from anywhere but a field; Escape clears it and goes back to the list.
function shortcut(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const typing = event.target instanceof Element && event.target.closest("input[type=search], textarea");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    search.focus();
    search.select();
  } else if (event.key === "Escape" && byId("browser").contains(event.target)) {
    event.preventDefault();
    if (search.value) {
      search.value = "";
      update();
    }
    list.focus();
  }
}

data.models.forEach((model, place) => {
  const label = element("label"), box = element("input");
  box.type = "checkbox";
  box.checked = true;
  box.addEventListener("change", () => {
    if (box.checked) hidden.delete(place);
    else hidden.add(place);
    countFilters();
    update();
  });
  label.append(box, ` ${model.title}`);
  byId("models").append(label);
});
search.addEventListener("focus", () => warmUp(), { once: true });
search.addEventListener("input", update);
filter.addEventListener("change", update);
sort.addEventListener("change", () => {
  chosen = null; // a new order is read from its top
  update();
});
list.addEventListener("keydown", move);
search.addEventListener("keydown", move);
addEventListener("keydown", shortcut);
addEventListener("hashchange", recall);
byId("browser").hidden = false;
addEventListener("resize", () => {
  measure();
  for (const [place, made] of rows) made.style.top = `${place * rowHeight}px`;
  paint();
});
countFilters();
update();
recall();
started = true;
