// Draw what the page holds; when it is served, draw it anew as the run goes on.
"use strict";

sg.draw = () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  sg.drawn.forEach(({ u }) => u.destroy());
  sg.drawn = [];
  sg.shown = null;
  const places = [
    ["profile", sg.profile, data.profile],
    ["heat", sg.heat, data.maps],
    ["course", sg.course, data.course],
    ["ratios", sg.ratios, data.ratios],
  ];
  for (const [name, draw, given] of places) {
    const place = document.querySelector(`[data-${name}]`);
    if (place && given) draw(place, given);
  }
  sg.resized(); // a chart that was alone in its row when it was drawn no longer is
  return data;
};

sg.redraw = () => {
  sg.resized();
  if (sg.shown) sg.shown.draw();
};

// Paper is light, whatever the screen.
sg.onPaper = (printed) => {
  document.documentElement.classList.toggle("paper", printed);
  sg.redraw();
};

// A redraw for every change of size, of colors, and for paper; nothing is fetched.
sg.listen = () => {
  let due = 0;
  const soon = () => {
    cancelAnimationFrame(due);
    due = requestAnimationFrame(sg.redraw);
  };
  addEventListener("resize", soon);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", soon);
  addEventListener("beforeprint", () => sg.onPaper(true));
  addEventListener("afterprint", () => sg.onPaper(false));
};

// The server tells that there is news; the page is asked for again, and shown where the reader is.
sg.follow = () => {
  const news = new EventSource("news");
  news.addEventListener("changed", async () => {
    const answer = await fetch(location.href);
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const kept = sg.kept();
    document.getElementById("main").replaceWith(page.getElementById("main"));
    document.getElementById("data").textContent = page.getElementById("data").textContent;
    document.title = page.title;
    sg.draw();
    sg.restored(kept);
  });
};

// What the reader has chosen: what is open, where the focus is, what is zoomed in on.
sg.kept = () => ({
  open: [...document.querySelectorAll("details")].map((one) => one.open),
  focus: sg.focusable().indexOf(document.activeElement),
  zooms: new Map(sg.drawn.filter(sg.isZoomed).map(({ u, sync }) => [sync, [u.scales.x.min, u.scales.x.max]])),
});

sg.restored = ({ open, focus, zooms }) => {
  document.querySelectorAll("details").forEach((one, n) => { one.open = open[n] ?? false; });
  for (const { u, sync } of sg.drawn) {
    if (zooms.has(sync)) u.setScale("x", { min: zooms.get(sync)[0], max: zooms.get(sync)[1] });
  }
  sg.focusable()[focus]?.focus({ preventScroll: true });
};

sg.focusable = () => [...document.querySelectorAll("main [tabindex], main button, main summary")];

sg.isZoomed = ({ u }) => u.scales.x.min > u.data[0][0] || u.scales.x.max < u.data[0].at(-1);

sg.listen();
if (sg.draw().live) sg.follow();
