(() => {
  "use strict";
  const get = (id) => document.getElementById(id);
  const data = JSON.parse(get("gallery-data").textContent);
  const form = get("filters"), list = get("rows"), boxes = get("boxes"), search = get("search");
  const urls = [];
  let at = -1;

  const make = (tag, name, text = "") => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text) node.textContent = text;
    return node;
  };

  // null: no image, or the detector was not asked.
  const whole = (cell) => !Array.isArray(cell) || !cell[2].length || cell[2].includes(null) ? null : cell[2].every(([found]) => found);

  function outcome(row, method) {
    const plain = row.whole[data.baseline], own = row.whole[method];
    if (plain === null || own === null) return null;
    return own ? (plain ? "both found" : "won") : plain ? "lost" : "both fail";
  }

  const rows = data.rows.map(([set, kind, prompt, seed, targets, cells], index) => {
    const row = { set, kind, prompt, seed, targets, cells, whole: cells.map(whole), filled: false };
    const said = [data.sets.length > 1 && data.sets[set], data.kinds[kind], seed !== null && `seed ${seed}`];
    row.item = make("li", "row");
    row.item.dataset.row = index;
    row.item.tabIndex = -1;
    const head = make("h3", "", prompt);
    head.append(" ", make("small", "", said.filter(Boolean).join(", ")));
    row.shots = make("div", "shots");
    row.item.append(head, row.shots);
    row.text = [prompt, ...targets].join("\n").toLowerCase();
    return row;
  });

  function sheet(number) {
    if (!urls[number]) {
      const held = get(`sheet-${number}`);
      const bytes = Uint8Array.from(atob(held.textContent), (letter) => letter.charCodeAt(0));
      urls[number] = URL.createObjectURL(new Blob([bytes], { type: "image/webp" }));
      held.textContent = "";
    }
    return urls[number];
  }

  function frame(row, method, [number, place, verdicts, link]) {
    const [width, height, columns, lines] = data.sheets[number];
    const node = make(link ? "a" : "div", "frame");
    if (link) Object.assign(node, { href: link, target: "_blank", title: "the image as it is, in its file" });
    const image = make("div", "image");
    const part = (index, count) => (count > 1 ? (100 * index) / (count - 1) : 0);
    image.setAttribute("role", "img");
    image.setAttribute("aria-label", `${data.methods[method]}: ${row.prompt}${row.seed === null ? "" : `, seed ${row.seed}`}`);
    image.style.cssText =
      `aspect-ratio: ${width} / ${height}; background-size: ${100 * columns}% ${100 * lines}%; ` +
      `background-position: ${part(place % columns, columns)}% ${part(Math.floor(place / columns), lines)}%`;
    const paint = () => { image.style.backgroundImage = `url("${sheet(number)}")`; };
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", paint); // the sheets come last
    else paint();
    verdicts.forEach((verdict, index) => {
      if (!verdict?.[2]) return;
      const [found, score, [left, top, right, bottom]] = verdict;
      const box = make("span", `box${found ? "" : " unsure"}${left + right > 1000 ? " right" : ""}`);
      box.style.cssText = `left: ${left / 10}%; top: ${top / 10}%; width: ${(right - left) / 10}%; height: ${(bottom - top) / 10}%`;
      box.append(make("b", "", `${row.targets[index]}${score === null ? "" : ` ${score.toFixed(2)}`}`));
      image.append(box);
    });
    node.append(image);
    return node;
  }

  function shot(row, method) {
    const cell = row.cells[method], figure = make("figure", "shot"), caption = make("figcaption");
    figure.dataset.method = method;
    caption.append(make("span", "method", data.methods[method]));
    if (Array.isArray(cell)) {
      const missing = row.targets.filter((_, index) => cell[2][index] && !cell[2][index][0]);
      const versus = method === data.baseline ? null : outcome(row, method);
      if (missing.length) figure.classList.add("missing");
      if (versus === "won" || versus === "lost") caption.append(" ", make("span", `chip ${versus}`, versus));
      if (missing.length) caption.append(make("span", "lacks", missing.map((name) => `no ${name}`).join(", ")));
      else if (row.whole[method]) caption.append(make("span", "all", "all found"));
      figure.append(frame(row, method, cell));
    } else figure.append(make("div", "frame none", cell === "n/a" ? "not applicable" : "no image"));
    figure.append(caption);
    return figure;
  }

  function fill(row) {
    if (row.filled) return;
    row.filled = true;
    row.shots.append(...row.cells.map((_, method) => shot(row, method)));
  }

  const near = new IntersectionObserver(
    (seen) => seen.forEach((one) => {
      if (!one.isIntersecting) return;
      fill(rows[one.target.dataset.row]);
      near.unobserve(one.target);
    }),
    { rootMargin: "600px" },
  );

  function update() {
    const asked = Object.fromEntries(new FormData(form));
    const words = (asked.text || "").toLowerCase().split(/\s+/).filter(Boolean);
    const counts = { all: 0, won: 0, lost: 0, "both found": 0, "both fail": 0 };
    let shown = 0;
    for (const row of rows) {
      const fits =
        [row.set, row.kind, row.seed].every((value, index) => [value + "", "", undefined].includes([asked.set, asked.kind, asked.seed][index])) &&
        words.every((word) => row.text.includes(word));
      const versus = fits && asked.method !== undefined ? outcome(row, +asked.method) : null;
      const visible = fits && (!asked.outcome || versus === asked.outcome);
      if (fits) counts.all += 1;
      if (versus) counts[versus] += 1;
      row.item.hidden = !visible;
      shown += visible;
    }
    for (const node of form.querySelectorAll("[data-count]")) node.textContent = counts[node.dataset.count].toLocaleString("en");
    list.dataset.method = asked.method ?? "";
    get("chosen").textContent = asked.method === undefined ? "" : `.shot[data-method="${asked.method}"] .method { text-decoration: underline 2px; }`;
    get("count").textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} shown`;
    get("nothing").hidden = shown > 0;
    list.classList.toggle("boxes", boxes?.checked ?? false);
    mark(-1);
  }

  function mark(index) {
    if (rows[at]) rows[at].item.classList.remove("current");
    at = index;
    if (!rows[at]) return;
    fill(rows[at]);
    rows[at].item.classList.add("current");
    rows[at].item.focus({ preventScroll: true });
    rows[at].item.scrollIntoView({ block: "nearest" });
  }

  function step(by) {
    const open = rows.flatMap((row, index) => (row.item.hidden ? [] : [index]));
    const first = open.findIndex((index) => rows[index].item.getBoundingClientRect().bottom > 0);
    const place = at < 0 ? first : Math.min(Math.max(open.indexOf(at) + by, 0), open.length - 1);
    if (open.length) mark(open[Math.max(place, 0)]);
  }

  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input[type=search], select")) return;
    if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "b") boxes?.click();
    else if (event.key === "/") search.focus();
    else return;
    event.preventDefault();
  });
  addEventListener("beforeprint", () => rows.forEach((row) => row.item.hidden || fill(row)));

  list.append(...rows.map((row) => row.item));
  update();
  rows.forEach((row) => near.observe(row.item));
  get("gallery").classList.add("live");
})();
