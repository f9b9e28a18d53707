// The heat map: layers by stretches of steps on a canvas, with a cursor for mouse and keyboard.
"use strict";

sg.NOT_READ = 0;
sg.ZERO = 1;
sg.BROKEN = 65535;
sg.LEVELS = 64999;

// Cividis (Nuñez, Anderton and Renslow 2018): the same to eyes that see red and green alike.
sg.CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];

sg.rgb = (share) => {
  const at = Math.min(Math.max(share, 0), 1) * (sg.CIVIDIS.length - 1);
  const below = Math.min(Math.floor(at), sg.CIVIDIS.length - 2);
  const part = (text, n) => parseInt(text.slice(1 + 2 * n, 3 + 2 * n), 16);
  const mixed = [0, 1, 2].map((n) => {
    const [a, b] = [part(sg.CIVIDIS[below], n), part(sg.CIVIDIS[below + 1], n)];
    return Math.round(a + (b - a) * (at - below));
  });
  return `rgb(${mixed.join(",")})`;
};

sg.PALETTE = Array.from({ length: 256 }, (_, n) => sg.rgb(n / 255));

sg.cellsOf = (map) => {
  const bytes = Uint8Array.from(atob(map.cells), (one) => one.charCodeAt(0));
  return Array.from({ length: bytes.length / 2 }, (_, n) => bytes[2 * n] + 256 * bytes[2 * n + 1]);
};

sg.share = (cell) => (cell - 2) / (sg.LEVELS - 1 + 0.001);

sg.meaning = (map, cell) => {
  if (cell === sg.NOT_READ) return "not read";
  if (cell === sg.ZERO) return "exactly 0";
  if (cell === sg.BROKEN) return "✕ not finite";
  const value = map.low + sg.share(cell) * (map.high - map.low);
  return map.log ? sg.said(10 ** value) : `${(100 * value).toFixed(1)} %`;
};

// --- The map ---

sg.Heat = class {
  constructor(place, map) {
    this.map = map;
    this.cells = sg.cellsOf(map);
    this.rows = map.names.length;
    this.columns = map.steps.length;
    this.at = null;
    this.reading = sg.element("div", { class: "reading", role: "status", "aria-live": "polite" });
    this.canvas = sg.element("canvas", { tabindex: "0", role: "img", "aria-label": `${map.title}: ${this.rows} layers over steps; arrow keys read a cell` });
    place.replaceChildren(sg.element("h3", {}, map.title), this.reading, this.canvas, this.scale());
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.look(null));
    this.canvas.addEventListener("keydown", (event) => this.keyed(event));
    this.draw();
    this.look(null);
  }

  // Widths and heights in CSS pixels.
  measure() {
    const row = Math.min(Math.max(Math.floor(420 / this.rows), 4), 18);
    const width = this.canvas.clientWidth || 600;
    const longest = Math.max(...sg.labels(this.map.names, 99).map((one) => one.length));
    const label = Math.min(width < 500 ? 96 : 190, 14 + 7 * longest);
    this.size = { row, label, width, high: row * this.rows, wide: width - label };
  }

  draw() {
    this.measure();
    const { row, label, width, high, wide } = this.size;
    const ratio = devicePixelRatio;
    this.canvas.width = width * ratio;
    this.canvas.height = (high + 22) * ratio;
    this.canvas.style.height = `${high + 22}px`;
    const names = ["sheet", "wrong", "broken"]; // asked for once, not for each cell
    this.colors = Object.fromEntries(names.map((one) => [one, sg.color(one)]));
    const ctx = this.canvas.getContext("2d");
    ctx.scale(ratio, ratio);
    ctx.fillStyle = sg.color("grid");
    ctx.fillRect(label, 0, wide, high);
    this.cells.forEach((cell, n) => this.cell(ctx, cell, Math.floor(n / this.columns), n % this.columns));
    this.crosses(ctx);
    this.words(ctx);
    if (this.at) this.frame(ctx);
  }

  // Where a column begins: in proportion to its steps, or one beside the other where few are read.
  left(column) {
    const { steps, last, timed } = this.map;
    const passed = ((steps[column] ?? last + 1) - steps[0]) / (last + 1 - steps[0]);
    const x = this.size.label + this.size.wide * (timed ? passed : column / this.columns);
    return Math.round(x * devicePixelRatio) / devicePixelRatio; // no seams between columns
  }

  // The column under a place, by halving.
  column(x) {
    let [low, high] = [0, this.columns];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.left(middle) <= x) low = middle;
      else high = middle;
    }
    return low;
  }

  cell(ctx, cell, row, column) {
    if (cell === sg.NOT_READ) return;
    const { row: high } = this.size;
    const [x, y, wide] = [this.left(column), row * high, this.left(column + 1) - this.left(column)];
    const gap = high > 6 ? 0.5 : 0;
    const marked = { [sg.BROKEN]: this.colors.wrong, [sg.ZERO]: this.colors.sheet };
    ctx.fillStyle = marked[cell] ?? sg.PALETTE[Math.round(sg.share(cell) * 255)];
    ctx.fillRect(x, y, wide, high - gap);
  }

  // Crosses on what is not finite, none on another: of neighbors the first, and then as they fit.
  crosses(ctx) {
    ctx.strokeStyle = this.colors.broken;
    ctx.lineWidth = 1.2;
    for (let row = 0; row < this.rows; row += 1) {
      let last = -Infinity;
      for (let column = 0; column < this.columns; column += 1) {
        const x = (this.left(column) + this.left(column + 1)) / 2;
        if (this.cells[row * this.columns + column] !== sg.BROKEN || x - last < 9) continue;
        this.cross(ctx, x, (row + 0.5) * this.size.row);
        last = x;
      }
    }
  }

  cross(ctx, x, y) {
    sg.strokeCross(ctx, x, y, Math.min(this.size.row, 9) / 2 - 1);
  }

  // Names of as many layers as fit, and steps below.
  words(ctx) {
    const { row, label, high } = this.size;
    ctx.fillStyle = sg.color("soft");
    ctx.font = `11px ${sg.color("mono")}`;
    ctx.textBaseline = "middle";
    ctx.textAlign = "right";
    const every = Math.ceil(12 / row);
    const most = Math.floor((label - 12) / 6.7);
    sg.labels(this.map.names, most).forEach((name, n) => {
      if (n % every === 0) ctx.fillText(name, label - 8, Math.max(n * row + row / 2 + 0.5, 6));
    });
    this.steps(ctx, high + 13);
  }

  steps(ctx, y) {
    ctx.font = "12px system-ui, sans-serif";
    const many = Math.max(2, Math.floor(this.size.wide / 110));
    for (let n = 0; n < many; n += 1) {
      const last = n === many - 1;
      const column = this.column(this.size.label + (n * this.size.wide) / (many - 1));
      ctx.textAlign = n === 0 ? "left" : last ? "right" : "center";
      const step = last ? this.map.last : this.map.steps[column];
      ctx.fillText(`${n ? "" : "step "}${step.toLocaleString("en-US")}`, last ? this.size.width : this.left(column), y);
    }
  }

  frame(ctx) {
    const [row, column] = this.at;
    ctx.strokeStyle = sg.color("ink");
    ctx.lineWidth = 2;
    const wide = this.left(column + 1) - this.left(column);
    ctx.strokeRect(this.left(column) - 1, row * this.size.row - 1, wide + 2, this.size.row + 2);
  }

  scale() {
    const bar = sg.element("canvas", { width: 180, height: 10, "aria-hidden": "true" });
    const ctx = bar.getContext("2d");
    for (let x = 0; x < 180; x += 1) {
      ctx.fillStyle = sg.PALETTE[Math.round((x / 179) * 255)];
      ctx.fillRect(x, 0, 1, 10);
    }
    const [low, high] = [sg.meaning(this.map, 2), sg.meaning(this.map, 2 + sg.LEVELS - 1)];
    const words = this.map.log ? "log scale" : "linear scale";
    return sg.element("div", { class: "scale" }, low, bar, high, sg.element("span", {}, `${words} · ✕ not finite · blank not read`));
  }

  // --- Reading a cell ---

  point(event) {
    const { left, top } = this.canvas.getBoundingClientRect();
    const x = event.clientX - left;
    const row = Math.floor((event.clientY - top) / this.size.row);
    const inside = x >= this.size.label && x < this.size.width && row >= 0 && row < this.rows;
    this.look(inside ? [row, this.column(x)] : null);
  }

  keyed(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const [row, column] = this.at ?? [0, 0];
    const bound = (value, most) => Math.min(Math.max(value, 0), most - 1);
    this.look(this.at ? [bound(row + move[0], this.rows), bound(column + move[1], this.columns)] : [0, 0]);
  }

  look(at) {
    const moved = String(at) !== String(this.at);
    this.at = at;
    if (moved) this.draw();
    if (!at) {
      this.reading.textContent = `${this.rows} layers, steps ${this.map.steps[0].toLocaleString("en-US")} to ${this.map.last.toLocaleString("en-US")}`;
      return;
    }
    const [row, column] = at;
    const from = this.map.steps[column];
    const until = (this.map.steps[column + 1] ?? this.map.last + 1) - 1;
    const stretch = until > from && this.map.timed ? `steps ${from.toLocaleString("en-US")}–${until.toLocaleString("en-US")}` : `step ${from.toLocaleString("en-US")}`;
    this.reading.replaceChildren(
      sg.element("b", {}, this.map.names[row]),
      sg.element("span", {}, stretch),
      sg.element("i", {}, sg.meaning(this.map, this.cells[row * this.columns + column])),
    );
  }
};

// One map at a time; buttons choose which.
sg.heat = (place, maps) => {
  const box = sg.element("div", { class: "chart heat" });
  const buttons = maps.map((map) => sg.element("button", { type: "button", "data-map": map.key }, map.title));
  const show = (chosen) => {
    buttons.forEach((one, n) => one.setAttribute("aria-pressed", String(n === chosen)));
    sg.chosen = maps[chosen].key;
    sg.shown = new sg.Heat(box, maps[chosen]);
  };
  buttons.forEach((one, n) => one.addEventListener("click", () => show(n)));
  if (maps.length > 1) place.append(sg.element("div", { class: "tabs", role: "group", "aria-label": "which map" }, ...buttons));
  place.append(box);
  show(Math.max(maps.findIndex((map) => map.key === sg.chosen), 0));
};
