// A viewer of one head's map: the data are bytes (weight * 255), layer by layer, head by head, query by query.
const headData = document.getElementById("head-data");
if (headData) {
  const data = JSON.parse(headData.textContent), size = data.size;
  const maps = data.models.map((model) => Uint8Array.from(atob(model.maps), (c) => c.charCodeAt(0)));
  const pick = (name) => document.getElementById(`head-${name}`);
  const [model, layer, head, canvas, said] = ["model", "layer", "head", "map", "said"].map(pick);
  const fillIn = (select, names) => names.forEach((name, value) => select.add(new Option(name, value)));
  fillIn(model, data.models.map((one) => one.title));
  fillIn(layer, [...Array(data.layers).keys()]);
  fillIn(head, [...Array(data.heads).keys()]);
  const weight = (query, key) =>
    maps[model.value][((layer.value * data.heads + Number(head.value)) * size + query) * size + key] / 255;
  const draw = () => {
    const pen = canvas.getContext("2d"), cell = canvas.width / size;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    for (let query = 0; query < size; query++) {
      for (let key = 0; key <= query; key++) {
        pen.fillStyle = `rgba(0, 114, 178, ${0.04 + 0.96 * weight(query, key)})`;
        pen.fillRect(key * cell, query * cell, cell - 0.5, cell - 0.5);
      }
    }
  };
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const place = (at, start, length) => Math.min(size - 1, Math.max(0, Math.floor(((at - start) / length) * size)));
    const key = place(event.clientX, box.left, box.width), query = place(event.clientY, box.top, box.height);
    if (key <= query) {
      const [from, to] = [query, key].map((n) => JSON.stringify(data.tokens[n]));
      said.textContent = `${from} (${query}) looks at ${to} (${key}): ${weight(query, key).toFixed(3)}`;
    }
  });
  [model, layer, head].forEach((select) => select.addEventListener("change", draw));
  draw();
}
