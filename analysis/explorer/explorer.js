// The explorer's page: asks by setting `selection`, shows `view`. No library, nothing fetched, nothing kept but the mouse.

const INK = "#1f4e79", TARGET = "#d55e00", NS = "http://www.w3.org/2000/svg";
// Magma from its light end, in nine steps: what is darker got more; clear where there is nothing.
const RAMP = [
  [252, 244, 182], [254, 206, 146], [254, 159, 109], [247, 112, 92], [222, 73, 104],
  [182, 54, 121], [140, 41, 129], [101, 26, 128], [63, 15, 114],
];
const PICTURES = 32; // that are kept decoded
const KEYS = "arrows left and right: step · up and down: word · h: head · l: layers · p: phase";

function colour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), low = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[low].map((value, channel) => Math.round(value + (place - low) * (RAMP[low + 1][channel] - value)));
}

function make(tag, parent, facts = {}) {
  const one = document.createElement(tag);
  const { text, ...rest } = facts;
  if (text !== undefined) one.textContent = text;
  for (const [name, value] of Object.entries(rest)) one.setAttribute(name, value);
  parent.append(one);
  return one;
}

function draw(tag, parent, facts, text) {
  const one = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(facts)) one.setAttribute(name, value);
  if (text !== undefined) one.textContent = text;
  parent.append(one);
  return one;
}

function options(select, values, chosen) {
  const wanted = JSON.stringify(values);
  if (select.dataset.values !== wanted) {
    select.dataset.values = wanted;
    select.replaceChildren();
    for (const [value, label] of values) make("option", select, { value: String(value), text: label });
  }
  select.value = String(chosen);
}

function numbers(view) { // a DataView may start anywhere in its buffer
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

class Page {
  constructor(model, root) {
    this.model = model;
    root.classList.add("attnreg-explorer");
    root.tabIndex = 0;
    root.setAttribute("data-lm-suppress-shortcuts", "true"); // or Lab would take "h" for a command
    root.setAttribute("aria-label", "attention explorer");
    this.root = root;
    const bar = make("div", root, { class: "bar" });
    this.selects = {};
    for (const [name, label] of [["image", "image"], ["other", "beside it"], ["layers", "layers"], ["head", "head"],
      ["phase", "maps"]]) {
      const field = make("label", bar, { text: label, class: name });
      this.selects[name] = make("select", field, { name });
      this.selects[name].onchange = (event) => this.ask({ [name]: this.read(name, event.target.value) });
    }
    this.words = make("div", root, { class: "words", role: "radiogroup", "aria-label": "word" });
    const steps = make("label", root, { class: "steps", text: "step" });
    this.step = make("input", steps, { type: "range", min: 0, value: 0 });
    this.step.oninput = () => this.ask({ step: this.choices.steps[this.step.value] });
    this.stepSaid = make("output", steps);
    this.panes = make("div", root, { class: "panes" });
    const scale = make("div", root, { class: "scale" });
    this.low = make("span", scale, { text: "0" });
    make("i", scale).style.background = `linear-gradient(to right, ${RAMP.map((c) => `rgb(${c})`).join(",")})`;
    this.high = make("span", scale);
    make("span", scale, { class: "what", text: "attention probability; one scale for all words, steps and images" });
    const cover = make("label", scale, { text: "cover" });
    this.cover = make("input", cover, { type: "range", min: 0, max: 1, step: 0.05, value: 0.8 });
    this.cover.oninput = () => this.paint();
    this.said = make("div", root, { class: "said", role: "status" });
    make("div", root, { class: "keys", text: KEYS });
    root.onkeydown = (event) => this.key(event);
    root.onpointerdown = () => root.focus({ preventScroll: true });
    this.bitmaps = new Map(); // decoded pictures by image: a step must not wait for the same one again
    this.changed = () => this.show();
    this.troubled = () => { this.say(""); this.show(); }; // show what is chosen still
    model.on("change:view", this.changed);
    model.on("change:trouble", this.troubled);
    this.show();
  }

  end() {
    this.model.off("change:view", this.changed);
    this.model.off("change:trouble", this.troubled);
  }

  get choices() { return this.model.get("choices"); }

  read(name, text) {
    if (name === "other") return text === "none" ? null : Number(text);
    return name === "image" || name === "head" ? Number(text) : text;
  }

  ask(change) {
    this.model.set("selection", { ...this.model.get("selection"), ...change });
    this.model.save_changes();
  }

  show() {
    const view = this.model.get("view"), choices = this.choices, now = view.selection;
    if (!now) return;
    const focused = this.root.contains(document.activeElement);
    options(this.selects.image, choices.images, now.image);
    options(this.selects.other, [["none", "—"], ...choices.images], now.other ?? "none");
    options(this.selects.layers, choices.layers.map((name) => [name, /^\d+x\d+$/.test(name) ? `all ${name}` : name]),
      now.layers);
    options(this.selects.head, [[-1, "mean of all"], ...choices.heads.map((head) => [head, String(head)])], now.head);
    options(this.selects.phase, choices.phases.map((name) => [name, name === "edited" ? "as edited" : "as computed"]),
      now.phase);
    this.selects.phase.parentElement.hidden = choices.phases.length < 2;
    this.step.max = choices.steps.length - 1;
    this.step.value = choices.steps.indexOf(now.step);
    this.stepSaid.textContent = now.step;
    this.high.textContent = view.map_top.toPrecision(2);
    this.words.replaceChildren();
    for (const [word, target] of choices.words) {
      const chip = make("button", this.words, { text: word, role: "radio", "aria-checked": word === now.word });
      chip.classList.toggle("target", target);
      chip.onclick = () => this.ask({ word });
    }
    this.panes.replaceChildren();
    this.drawn = view.panes.map((pane) => this.pane(pane, view, now));
    if (focused && !this.root.contains(document.activeElement)) this.root.focus({ preventScroll: true }); // for the keys
    this.paint();
  }

  pane(pane, view, now) {
    const box = make("section", this.panes), bitmap = this.bitmaps.get(pane.image) ?? null;
    make("h4", box, { text: pane.title });
    const frame = make("div", box, { class: "frame" });
    const canvas = make("canvas", frame, { width: 320, height: 320, role: "img" });
    canvas.setAttribute("aria-label", `attention to ${now.word}, step ${now.step}`);
    if (pane.note) make("p", frame, { text: pane.note });
    const map = pane.height ? numbers(pane.map) : null;
    const drawn = { canvas, map, pane, top: view.map_top, image: bitmap };
    const fit = () => { // the map's shape is the picture's; without a map the picture alone says it
      const [width, height] = map ? [pane.width, pane.height] : [drawn.image?.width ?? 1, drawn.image?.height ?? 1];
      canvas.height = Math.round((320 * height) / width);
    };
    fit();
    const png = this.model.get("pictures")[String(pane.image)];
    if (!bitmap && png?.byteLength) {
      createImageBitmap(new Blob([png], { type: "image/png" })).then((image) => {
        this.bitmaps.set(pane.image, image);
        if (this.bitmaps.size > PICTURES) this.bitmaps.delete(this.bitmaps.keys().next().value);
        drawn.image = image;
        fit();
        this.paint();
      });
    }
    canvas.onpointermove = (event) => this.hover(drawn, event);
    canvas.onpointerleave = () => this.say("");
    this.curves(box, pane, view.curve_top, now);
    this.matrix(box, pane, view, now);
    return drawn;
  }

  paint() {
    for (const { canvas, map, pane, top, image } of this.drawn ?? []) {
      const context = canvas.getContext("2d");
      context.fillStyle = "#ddd";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.filter = "grayscale(0.7)";
      if (image) context.drawImage(image, 0, 0, canvas.width, canvas.height);
      context.filter = "none";
      if (!map) continue;
      const layer = new OffscreenCanvas(pane.width, pane.height), inner = layer.getContext("2d");
      const pixels = inner.createImageData(pane.width, pane.height);
      for (let place = 0; place < map.length; place++) {
        const share = map[place] / top;
        pixels.data.set([...colour(share), 255 * this.cover.value * Math.min(1, share * 2) ** 0.6], 4 * place);
      }
      inner.putImageData(pixels, 0, 0);
      context.imageSmoothingEnabled = false; // a pixel of the map is a square: nothing is made up between them
      context.drawImage(layer, 0, 0, canvas.width, canvas.height);
    }
    this.root.dataset.shown = JSON.stringify(this.model.get("view").selection);
  }

  hover({ canvas, map, pane }, event) {
    if (!map) return;
    const box = canvas.getBoundingClientRect();
    const x = Math.min(pane.width - 1, Math.floor(((event.clientX - box.x) / box.width) * pane.width));
    const y = Math.min(pane.height - 1, Math.floor(((event.clientY - box.y) / box.height) * pane.height));
    this.say(`${pane.word}, row ${y}, column ${x}: ${map[y * pane.width + x].toPrecision(3)}`);
  }

  say(text) {
    this.said.textContent = text || this.model.get("trouble");
    this.said.classList.toggle("trouble", !text && Boolean(this.model.get("trouble")));
  }

  curves(box, pane, top, now) {
    const gap = Math.min(9, 300 / Math.max(pane.curves.length, 1)); // between the words' names
    const width = 320, height = Math.max(130, gap * pane.curves.length + 12), left = 30, foot = 18, right = 66;
    const svg = draw("svg", box, { viewBox: `0 0 ${width} ${height}`, class: "curves" });
    const steps = pane.steps, last = steps.length - 1;
    if (!steps.length) return; // nothing was edited: the note over the map says so
    const span = Math.max(steps[last] - steps[0], 1);
    const x = (place) => left + ((steps[place] - steps[0]) / span) * (width - left - right);
    const y = (value) => 6 + (1 - value / top) * (height - foot - 6);
    for (const tick of [0, top]) draw("text", svg, { x: left - 4, y: y(tick) + 3, class: "tick end" }, tick.toPrecision(2));
    for (const place of new Set([0, last])) {
      draw("text", svg, { x: x(place), y: height - 5, class: "tick middle" }, `step ${steps[place]}`);
    }
    draw("path", svg, { d: `M${left} ${y(top)}V${y(0)}H${width - right}`, class: "axis" });
    if (steps.includes(now.step)) draw("path", svg, { d: `M${x(steps.indexOf(now.step))} ${y(top)}V${y(0)}`, class: "now" });
    const ends = pane.curves.map(([word, , line]) => [word, y(line[line.length - 1] ?? 0)]).sort((a, b) => a[1] - b[1]);
    ends.forEach((end, place) => { if (place) end[1] = Math.max(end[1], ends[place - 1][1] + gap); });
    const lowest = Math.max(0, (ends.at(-1)?.[1] ?? 0) - (height - 3));
    const heights = Object.fromEntries(ends.map(([word, at]) => [word, at - lowest]));
    for (const [word, target, line] of pane.curves) {
      const kinds = `word${target ? " target" : ""}${word === pane.word ? " chosen" : ""}`;
      const points = line.map((value, place) => (value === null ? null : `${x(place)},${y(value)}`)).filter(Boolean);
      const curve = draw("polyline", svg, { points: points.join(" "), class: kinds });
      const name = draw("text", svg, { x: width - right + 4, y: heights[word] + 3, class: kinds }, word);
      for (const part of [curve, name]) part.onclick = () => this.ask({ word });
    }
    const nearest = (event) => {
      const sides = svg.getBoundingClientRect(), at = ((event.clientX - sides.x) / sides.width) * width;
      const away = (place) => Math.abs(x(place) - at);
      return steps.reduce((best, _, place) => (away(place) < away(best) ? place : best), 0);
    };
    svg.onpointermove = (event) => {
      const place = nearest(event);
      const each = pane.curves.map(([word, , line]) => `${word} ${line[place]?.toPrecision(3) ?? "—"}`);
      this.say(`step ${steps[place]}, 0.9-quantile: ${each.join(", ")}`);
    };
    svg.onpointerleave = () => this.say("");
    svg.onclick = (event) => { if (!event.target.classList.contains("word")) this.ask({ step: steps[nearest(event)] }); };
  }

  matrix(box, pane, view, now) {
    const size = 15, left = 160, heads = pane.matrix[0]?.length ?? 0;
    const svg = draw("svg", box, { viewBox: `0 0 320 ${pane.rows.length * size + 16}`, class: "matrix" });
    const wide = Math.min(34, (320 - left) / Math.max(heads, 1));
    pane.rows.forEach(([path, group], row) => {
      const chosen = now.layers === path || now.layers === group;
      const name = path.replace(".attentions.", ".").replace(".transformer_blocks.", ".").replace(".attn2", "");
      const label = draw("text", svg, { x: left - 6, y: row * size + 11, class: `tick end${chosen ? " chosen" : ""}` },
        `${name} ${group}`);
      label.onclick = () => this.ask({ layers: path, head: -1 });
      pane.matrix[row].forEach((value, head) => {
        if (value === null) return;
        const cell = draw("rect", svg, { x: left + head * wide, y: row * size, width: wide - 1, height: size - 1,
          fill: `rgb(${colour(value / view.cell_top)})`, class: chosen && [-1, head].includes(now.head) ? "chosen" : "" });
        cell.onclick = () => this.ask({ layers: path, head });
        cell.onpointermove = () => this.say(`${pane.word}, ${path}, head ${head}: 0.9-quantile ${value.toPrecision(3)}`);
        cell.onpointerleave = () => this.say("");
      });
    });
    const foot = pane.rows.length * size + 11;
    draw("text", svg, { x: left - 6, y: foot, class: "tick end" }, `0.9-quantile up to ${view.cell_top.toPrecision(2)}, by head`);
    for (let head = 0; head < heads; head++) {
      draw("text", svg, { x: left + (head + 0.5) * wide, y: foot, class: "tick middle" }, head);
    }
  }

  key(event) {
    // What was asked for last, not what is shown yet: two quick presses are two steps.
    const now = this.model.get("selection"), { words, steps, layers, heads, phases } = this.choices;
    const turn = (list, chosen, by) => list[(list.indexOf(chosen) + by + list.length) % list.length];
    const moves = {
      ArrowRight: () => ({ step: steps[Math.min(steps.indexOf(now.step) + 1, steps.length - 1)] }),
      ArrowLeft: () => ({ step: steps[Math.max(steps.indexOf(now.step) - 1, 0)] }),
      ArrowDown: () => ({ word: turn(words.map(([word]) => word), now.word, 1) }),
      ArrowUp: () => ({ word: turn(words.map(([word]) => word), now.word, -1) }),
      h: () => ({ head: turn([-1, ...heads], now.head, 1) }),
      l: () => ({ layers: turn(layers, now.layers, 1) }),
      p: () => ({ phase: turn(phases, now.phase, 1) }),
    };
    const own = event.target.tagName === "SELECT" || (event.target === this.cover && event.key.startsWith("Arrow"));
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey || own) return;
    event.preventDefault();
    event.stopPropagation();
    this.ask(moves[event.key]());
  }
}

export default {
  render({ model, el }) {
    const page = new Page(model, el);
    return () => page.end();
  },
};
