// Line charts: the depth profile, the course over steps, and the size of updates; drawn by uPlot.
"use strict";

sg.DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [12, 5], [4, 2], [1, 4]];
sg.drawn = [];

// --- Series ---

// A line differs from others by its dash as well as by its color.
sg.stroke = (number) => () => sg.color(`line-${(number % 7) + 1}`);

sg.seriesOf = (chart) =>
  chart.series.map((one, number) => ({
    label: one.label,
    stroke: sg.stroke(one.color ?? number),
    width: one.thin ? 1 : 1.6,
    dash: sg.DASHES[(one.dash ?? number) % 7],
    points: { show: !one.thin && one.values.filter((value) => value !== null).length < 45, size: 4 },
    spanGaps: Boolean(chart.sparse),
  }));

// What a log axis cannot hold is not drawn as a point; it stands in the reading.
sg.valuesOf = (chart) =>
  chart.series.map((one) => (chart.log ? one.values.map((v) => (v > 0 ? v : null)) : one.values));

sg.rangeOf = (chart) => {
  const every = chart.series.flatMap((one) => [...one.values, ...(one.low ?? []), ...(one.high ?? [])]);
  const read = every.concat(chart.rule ?? [], chart.band ?? []).filter((v) => v !== null && (!chart.log || v > 0));
  let [low, high] = [Infinity, -Infinity];
  for (const value of read) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (!read.length) return [chart.log ? 0.1 : 0, 1];
  if (chart.share) return [0, 1];
  if (chart.log) return [low / 1.6, high * 1.6];
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
};

// --- What is drawn beside the lines ---

sg.under = (chart) => (u) => {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  if (chart.band) {
    const [top, bottom] = [u.valToPos(chart.band[1], "y", true), u.valToPos(chart.band[0], "y", true)];
    ctx.fillStyle = sg.color("band");
    ctx.fillRect(bbox.left, top, bbox.width, bottom - top);
  }
  const level = chart.rule ?? (chart.band ? 1 : null);
  if (level !== null) {
    const y = Math.round(u.valToPos(level, "y", true)) + 0.5;
    sg.stretch(ctx, [bbox.left, y, bbox.left + bbox.width, y], sg.color("healthy"), [5, 4]);
  }
  chart.series.forEach((one, number) => one.low && sg.spread(u, chart, one, number));
  ctx.restore();
};

sg.stretch = (ctx, [x0, y0, x1, y1], color, dash = []) => {
  ctx.strokeStyle = color;
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash(dash.map((one) => one * devicePixelRatio));
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
};

// The least and the largest of each stretch of steps.
sg.spread = (u, chart, one, number) => {
  const floor = chart.log ? u.scales.y.min : null;
  const there = u.data[0].map((_, n) => n).filter((n) => one.low[n] !== null);
  const height = (value) => u.valToPos(floor === null ? value : Math.max(value, floor), "y", true);
  u.ctx.beginPath();
  for (const n of there) u.ctx.lineTo(u.valToPos(u.data[0][n], "x", true), height(one.high[n]));
  for (const n of there.reverse()) u.ctx.lineTo(u.valToPos(u.data[0][n], "x", true), height(one.low[n]));
  u.ctx.closePath();
  u.ctx.globalAlpha = 0.18;
  u.ctx.fillStyle = sg.stroke(number)();
  u.ctx.fill();
  u.ctx.globalAlpha = 1;
};

sg.over = (chart, flags) => (u) => {
  const { ctx, bbox } = u;
  ctx.save();
  const inside = (x) => x >= bbox.left - 1 && x <= bbox.left + bbox.width + 1;
  for (const flag of flags) {
    const x = Math.round(u.valToPos(flag.step, "x", true)) + 0.5;
    if (!inside(x)) continue;
    sg.stretch(ctx, [x, bbox.top, x, bbox.top + bbox.height], sg.color("broken"), [3, 3]);
    sg.pennant(ctx, x, bbox.top);
  }
  const broken = [...new Set(chart.series.flatMap((one) => one.broken ?? []))].sort((a, b) => a - b);
  sg.crosses(u, broken.map((n) => u.valToPos(u.data[0][n], "x", true)).filter(inside));
  ctx.restore();
};

// Crosses along the top, none on another.
sg.crosses = (u, places) => {
  const [y, size] = [u.bbox.top + 14 * devicePixelRatio, 3.5 * devicePixelRatio];
  let last = -Infinity;
  for (const x of places) {
    if (x - last < 3 * size) continue;
    sg.cross(u.ctx, x, y, size, sg.color("broken"));
    last = x;
  }
};

sg.pennant = (ctx, x, y) => {
  const size = 8 * devicePixelRatio;
  ctx.fillStyle = sg.color("broken");
  ctx.beginPath();
  ctx.moveTo(x, y);
  ctx.lineTo(x + size, y + size / 2);
  ctx.lineTo(x, y + size);
  ctx.fill();
};

sg.cross = (ctx, x, y, size, color) => {
  ctx.strokeStyle = color;
  ctx.lineWidth = 1.5 * devicePixelRatio;
  ctx.setLineDash([]);
  sg.strokeCross(ctx, x, y, size);
};

sg.strokeCross = (ctx, x, y, size) => {
  ctx.beginPath();
  ctx.moveTo(x - size, y - size);
  ctx.lineTo(x + size, y + size);
  ctx.moveTo(x + size, y - size);
  ctx.lineTo(x - size, y + size);
  ctx.stroke();
};

// --- The reading above a chart: what stands under the cursor ---

sg.swatch = (number, one) => {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const line = document.createElementNS(space, "path");
  svg.setAttribute("viewBox", "0 0 26 8");
  svg.setAttribute("aria-hidden", "true");
  line.setAttribute("d", "M0 4H26");
  line.setAttribute("stroke", `var(--line-${((one.color ?? number) % 7) + 1})`);
  line.setAttribute("stroke-width", one.thin ? "1.4" : "2.2");
  line.setAttribute("stroke-dasharray", sg.DASHES[(one.dash ?? number) % 7].join(" "));
  svg.append(line);
  return svg;
};

sg.readingOf = (chart, names) => {
  const where = sg.element("b");
  const values = chart.series.map(() => sg.element("i"));
  const labels = chart.series.map((one, n) => sg.element("span", {}, sg.swatch(n, one), `${one.label} `, values[n]));
  const line = sg.element("div", { class: "reading", role: "status" }, where, ...labels);
  line.show = (u) => {
    const at = u.cursor.idx;
    const place = at === null || at === undefined ? u.data[0].length - 1 : at;
    where.textContent = names ? names[place] : `step ${u.data[0][place].toLocaleString("en-US")}`;
    chart.series.forEach((one, n) => {
      const broken = (one.broken ?? []).includes(place) && one.values[place] === null;
      values[n].textContent = broken ? "✕ not finite" : sg.said(one.values[place]);
    });
  };
  return line;
};

// --- A chart ---

sg.axis = (more) => ({
  stroke: () => sg.color("soft"),
  font: "12px system-ui, sans-serif",
  grid: { stroke: () => sg.color("grid"), width: 1 },
  ticks: { show: false },
  ...more,
});

sg.axesOf = (names, chart) => {
  const short = names && sg.labels(names, 13);
  const said = (u, ticks) => ticks.map((one) => (names ? short[one] ?? "" : sg.compact.format(one)));
  const across = { values: said, space: names ? 100 : 60, size: 26, incrs: [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 1e7] };
  const up = { size: 62, space: chart.log ? 22 : 34, values: (u, ticks) => ticks.map((one) => (one === null ? "" : sg.said(one, 4))) };
  if (!chart.log) return [sg.axis(across), sg.axis(up)];
  const grid = { stroke: () => sg.color("grid"), width: 1, filter: sg.decades };
  return [sg.axis(across), sg.axis({ ...up, grid, filter: sg.decades })];
};

// A log axis has lines at powers of ten, at no more of them than there is room for.
sg.decades = (u, ticks) => {
  const powers = ticks.filter(sg.isPower).map((one) => Math.round(Math.log10(one)));
  if (powers.length < 2) return ticks.map((one) => (sg.isRound(one) ? one : null));
  const room = Math.max(1, Math.floor(u.height / 26));
  const every = Math.ceil((powers.at(-1) - powers[0] + 1) / room);
  return ticks.map((one) => (sg.isPower(one) && Math.round(Math.log10(one)) % every === 0 ? one : null));
};

sg.isRound = (value) => value !== null && ["1", "2", "5"].includes(Number(value.toPrecision(6)).toExponential().split("e")[0]);

sg.isPower = (value) => value !== null && Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-6;

sg.chart = (place, across, chart, { names = null, sync = null, flags = [], height = 150 } = {}) => {
  const reading = sg.readingOf(chart, names);
  const box = sg.element("div", { class: "chart", tabindex: "0", role: "group", "aria-label": `chart: ${chart.title}` });
  box.append(sg.element("h3", {}, chart.title), reading);
  place.append(box);
  const range = sg.rangeOf(chart);
  const options = {
    width: Math.max(box.clientWidth - 24, 120),
    height,
    legend: { show: false },
    padding: [8, names ? 40 : 14, 0, 0],
    cursor: { y: false, drag: { x: true, y: false }, ...(sync ? { sync: { key: sync, setSeries: false } } : {}) },
    scales: { x: { time: false }, y: { distr: chart.log ? 3 : 1, range: () => range } },
    axes: sg.axesOf(names, chart),
    series: [{}, ...sg.seriesOf(chart)],
    hooks: { drawAxes: [sg.under(chart)], draw: [sg.over(chart, flags)], setCursor: [(u) => reading.show(u)] },
  };
  const u = new uPlot(options, [across, ...sg.valuesOf(chart)], box);
  reading.show(u);
  box.addEventListener("keydown", (event) => sg.keyed(event, u));
  sg.drawn.push({ u, box, sync });
  return u;
};

// --- The keyboard, and zooming together ---

sg.keyed = (event, u) => {
  const { min, max } = u.scales.x;
  const keys = {
    ArrowLeft: () => sg.step(u, -1),
    ArrowRight: () => sg.step(u, 1),
    "+": () => sg.zoomTo(u, sg.around(u, (max - min) / 4)),
    "-": () => sg.zoomTo(u, sg.around(u, max - min)),
    0: () => sg.zoomTo(u, [u.data[0][0], u.data[0].at(-1)]),
  };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
};

sg.step = (u, by) => {
  const at = u.cursor.idx ?? u.data[0].length - 1;
  const next = Math.min(Math.max(at + by, 0), u.data[0].length - 1);
  u.setCursor({ left: u.valToPos(u.data[0][next], "x"), top: 10 }, true, true);
};

sg.around = (u, half) => {
  const middle = u.data[0][u.cursor.idx ?? (u.data[0].length >> 1)];
  return [Math.max(middle - half, u.data[0][0]), Math.min(middle + half, u.data[0].at(-1))];
};

// Charts of one cursor show the same stretch; uPlot passes on a drag by itself.
sg.zoomTo = (u, [min, max]) => {
  if (!(max > min)) return;
  const mine = sg.drawn.find((one) => one.u === u);
  const together = sg.drawn.filter((one) => one.u === u || (mine.sync && one.sync === mine.sync));
  for (const one of together) one.u.setScale("x", { min, max });
};

sg.resized = () => {
  for (const { u, box } of sg.drawn) u.setSize({ width: Math.max(box.clientWidth - 24, 120), height: u.height });
};

// --- The three places ---

sg.profile = (place, profile) => {
  const across = profile.names.map((_, n) => n);
  for (const panel of profile.panels) {
    const many = panel.series.length > 1;
    const series = panel.series.map((one, n) => (many && n === 0 ? { ...one, color: 6, dash: 1, thin: true } : { ...one, color: 0, dash: 0 }));
    const chart = { ...panel, series, log: true, band: profile.band };
    sg.chart(place, across, chart, { names: profile.names, sync: "depth", height: 260 });
  }
};

sg.course = (place, course) => {
  for (const chart of course.charts) {
    sg.chart(place, course.steps, chart, { sync: "steps", flags: course.flags ?? [], height: chart.share ? 92 : 150 });
  }
  for (const flag of (course.flags ?? []).slice(0, 6)) {
    const said = sg.element("div", { class: "flag" }, `⚑ step ${flag.step.toLocaleString("en-US")}: ${flag.label}`);
    place.before(said);
  }
};

sg.ratios = (place, ratios) => {
  for (const chart of ratios.charts) sg.chart(place, ratios.steps, { ...chart, sparse: true }, { sync: "sampled", height: 230 });
};
