// Numbers as people read them, and elements without markup: text is only ever set as text.
"use strict";

const sg = {};

sg.said = (value, digits = 3) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) {
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    return `${Number(mantissa)}e${Number(exponent)}`;
  }
  return size >= 1000 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(digits)));
};

sg.element = (name, attributes = {}, ...inside) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
};

sg.color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// A step on an axis: 200, 20K, 2M.
sg.compact = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 2 });

// Names without the modules that all of them are in, cut at their beginning where they are too long.
sg.labels = (names, most) => {
  const [first, ...rest] = names;
  const parts = names.length > 1 ? first.split(".").slice(0, -1) : [];
  while (parts.length && !rest.every((one) => one.startsWith(`${parts.join(".")}.`))) parts.pop();
  const start = parts.length ? parts.join(".").length + 1 : 0;
  return names.map((one) => sg.shortened(one.slice(start), most));
};

sg.shortened = (name, most) => (name.length <= most ? name : `…${name.slice(name.length - most + 1)}`);
