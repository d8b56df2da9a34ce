"use strict";

const comparisons = JSON.parse(document.getElementById("data").textContent);

/** An element with properties, and what is in it. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Three digits: 1,230; 12.3; 0.0123; 1.23e-5. */
function digits(number) {
  const size = Math.abs(number);
  if (!(size >= 1e-3)) return size ? number.toExponential(2) : "0";
  return size >= 999.5 ? Math.round(number).toLocaleString("en") : number.toPrecision(3);
}

/** A cell in words: its grid, or its tolerance. */
function where(row) {
  return row.nfe === null ? `rtol ${row.rtol}` : row.grid;
}

/** Its cost: 10 NFE; 12.3 NFE in the mean. */
function spending(row) {
  return row.nfe === null ? `${row.spent.toFixed(1)} NFE in the mean` : `${row.nfe} NFE`;
}

/** The row of least error, if any, among those that `wanted` accepts. */
function best(rows, wanted, measure = "rmse") {
  const error = (row) => (typeof row[measure] === "number" ? Math.abs(row[measure]) : Infinity);
  return rows.filter(wanted).reduce((a, b) => (a && error(a) <= error(b) ? a : b), undefined);
}

/** The button that switches between light and dark, whatever the system prefers. */
function theme() {
  const button = document.getElementById("theme"), system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const say = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.hidden = false;
  button.addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; say(); });
  system.addEventListener("change", say);
  say();
}

/** One tab per comparison; arrow keys move between them, and the address remembers which. */
function tabs() {
  const all = [...document.querySelectorAll('[role="tab"]')];
  const choose = (tab) => {
    for (const other of all) {
      other.setAttribute("aria-selected", other === tab);
      other.tabIndex = other === tab ? 0 : -1;
      document.getElementById(other.getAttribute("aria-controls")).hidden = other !== tab;
    }
  };
  const go = (tab) => {
    choose(tab);
    tab.focus();
    history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
  };
  all.forEach((tab, i) => {
    tab.addEventListener("click", () => go(tab));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1 + all.length, Home: 0, End: all.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      go(all[to % all.length]);
    });
  });
  if (all.length) choose(all.find((tab) => `#${tab.getAttribute("aria-controls")}` === location.hash) ?? all[0]);
}

document.addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("DOMContentLoaded", () => {
  theme();
  tabs();
  for (const data of comparisons) {
    const panel = document.getElementById(data.id);
    chart(panel.querySelector(".curves"), data);
    wall(panel.querySelector(".wall"), data);
    table(panel.querySelector(".rows"), data);
  }
});
