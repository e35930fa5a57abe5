// The item browser, 4: search, filter, sort, keyboard, and the address.
const search = byId("search"), filter = byId("filter"), sort = byId("sort"), sides = { a: byId("a"), b: byId("b") };

function update() {
  seek(search.value);
  for (const [side, field] of Object.entries(sides)) {
    pair[side] = field.selectedIndex;
    field.parentElement.hidden = !(filter.value === "pair" || (side === "a" && filter.value.startsWith("a-")));
  }
  pair.about = sides.a.parentElement.hidden ? -1 : pair.a;
  draw(matching(filter.value, sort.value));
  byId("count").textContent = `${shown.length} of ${data.items.length} items.`;
  select(shown.includes(chosen) ? chosen : shown[0] || null);
}

// How many items each filter would leave, for the models that are shown and chosen.
function countFilters() {
  for (const option of filter.options) {
    option.dataset.name ??= option.textContent;
    option.textContent = `${option.dataset.name} (${data.items.filter(FILTERS[option.value]).length})`;
    if (option.value === "extractors" || option.value === "none") option.disabled = !data.extractors.length;
  }
}

// The reader changed something: shows it, and puts it into the address.
function changed() {
  update();
  remember(false);
}

// All choices as an address, so that a finding can be sent to someone as a link; what nobody changed is left out.
function address() {
  const said = new URLSearchParams();
  if (chosen) said.set("item", chosen.id);
  if (filter.value !== "all") said.set("filter", filter.value);
  for (const [side, field] of Object.entries(sides)) if (!field.parentElement.hidden) said.set(side, field.value);
  if (sort.value !== "file") said.set("sort", sort.value);
  if (search.value) said.set("q", search.value);
  for (const place of hidden) said.append("hide", data.models[place].name);
  return `#${said}`;
}

// `opened`: Back leads to where the reader was before.
function remember(opened) {
  const now = address();
  if (now === location.hash) return;
  try {
    if (opened) history.pushState(null, "", now);
    else history.replaceState(null, "", now);
  } catch {
    // A page without a history can still be read.
  }
}

// Chooses a value that the field has, or else its first.
function choose(field, value) {
  field.value = value ?? "";
  if (field.selectedIndex < 0 || field.selectedOptions[0].disabled) field.selectedIndex = 0;
}

// Does what an address of the browser says; those of other parts of the page leave it alone.
function recall() {
  const said = new URLSearchParams(location.hash.slice(1));
  if (!["item", "filter", "sort", "q", "hide"].some((key) => said.get(key))) return;
  search.value = said.get("q") ?? "";
  choose(filter, said.get("filter"));
  choose(sort, said.get("sort"));
  for (const [side, field] of Object.entries(sides)) choose(field, said.get(side));
  const without = said.getAll("hide");
  for (const [place, box] of [...byId("models").querySelectorAll("input")].entries()) {
    box.checked = !without.includes(data.models[place].name);
    if (box.checked) hidden.delete(place);
    else hidden.add(place);
  }
  chosen = data.items.find((item) => item.id === said.get("item")) || null;
  const named = chosen;
  update();
  if (named && chosen !== named) { // an address that names an item shows it, whatever else it says
    [search.value, filter.value, chosen] = ["", "all", named];
    update();
  }
  countFilters();
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
  select(shown[Math.min(Math.max(steps[event.key], 0), shown.length - 1)]);
  remember(false);
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
      changed();
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
    changed();
    countFilters();
  });
  label.append(box, ` ${model.title}`);
  byId("models").append(label);
  for (const field of Object.values(sides)) field.append(new Option(model.title, model.name));
  if (data.items.some((item) => item.answers[place].kl !== undefined)) {
    byId("by-kl").append(new Option(`KL of ${model.title}`, `kl:${model.name}`));
    byId("by-kl").hidden = false;
  }
});
search.addEventListener("focus", () => warmUp(), { once: true });
search.addEventListener("input", changed);
filter.addEventListener("change", changed);
for (const field of Object.values(sides)) {
  field.addEventListener("change", () => {
    changed();
    countFilters();
  });
}
sort.addEventListener("change", () => {
  chosen = null; // a new order is read from its top
  changed();
});
list.addEventListener("keydown", move);
search.addEventListener("keydown", move);
addEventListener("keydown", shortcut);
addEventListener("hashchange", recall);
// A link to where the address already is changes nothing, and so tells nobody.
addEventListener("click", (event) => {
  const link = event.target instanceof Element && event.target.closest("a[href^='#']");
  if (link && link.hash === location.hash) recall();
});
byId("browser").hidden = false;
addEventListener("resize", () => {
  measure();
  for (const [place, made] of rows) made.style.top = `${place * rowHeight}px`;
  paint();
});
update();
countFilters();
recall();
