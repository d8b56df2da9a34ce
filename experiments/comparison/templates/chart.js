/* Error against cost, both logarithmic: one line per solver, in the colours and with the marks of the printed figures. */

const MARKS = [  // a circle, a square, a diamond, two triangles, a plus, a cross
  "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0",
  "M-3.6,-3.6h7.2v7.2h-7.2z",
  "M0,-5L5,0L0,5L-5,0z",
  "M0,-5L4.7,3.6H-4.7z",
  "M0,5L4.7,-3.6H-4.7z",
  "M-1.7,-5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
  "M-4.6,-2.3L-2.3,-4.6L0,-2.3L2.3,-4.6L4.6,-2.3L2.3,0L4.6,2.3L2.3,4.6L0,2.3L-2.3,4.6L-4.6,2.3L-2.3,0z",
];
const COLOURS = 10, NEAR = 40;
const EDGES = { left: 52, right: 12, top: 28, bottom: 44 };

/** The points that are not dominated, by increasing cost; equal points together. */
function pareto(points) {
  const front = [];
  for (const point of [...points].sort((a, b) => a.x - b.x || a.y - b.y)) {
    const last = front.at(-1);
    if (!last || point.y < last.y || (point.y === last.y && point.x === last.x)) front.push(point);
  }
  return front;
}

/** Ticks of a log axis from low to high: the decades, and between them 2 and 5 where there are few. */
function logTicks(low, high, room) {
  const decades = Math.log10(high / low), every = Math.max(1, Math.ceil(decades / room));
  const steps = decades < 0.7 ? [1, 1.5, 2, 3, 4, 5, 6, 8] : decades < 2 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let k = Math.floor(Math.log10(low)); k <= Math.log10(high); k++) {
    if (k % every) continue;
    for (const step of steps) ticks.push(Number(`${step}e${k}`));
  }
  return ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
}

/** 0.01 as 0.01, and 1e-5 as 10 to a power. */
function tickName(tick) {
  const k = Math.log10(tick);
  if (k >= -3 && k < 4) return String(tick);
  const power = [...String(Math.floor(k + 1e-9))].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");
  const step = Math.round((tick / 10 ** Math.floor(k + 1e-9)) * 10) / 10;
  return step === 1 ? `10${power}` : `${step}·10${power}`;
}

function chart(section, data) {
  const svg = section.querySelector("svg"), form = section.querySelector("form"), tip = section.querySelector(".tip");
  if (!svg) return;
  const order = new Map(data.solvers.map((solver, i) => [solver, i]));
  const hidden = new Set();
  let lines = [];

  /** An SVG element. */
  const draw = (tag, attributes, parent, text = "") => {
    const element = document.createElementNS(svg.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    parent.append(element);
    return element;
  };
  const look = (element, solver) => element.style.setProperty("--colour", `var(--c${order.get(solver) % COLOURS})`);
  const mark = (solver) => MARKS[order.get(solver) % MARKS.length];

  /** The lines to draw: [{solver, adaptive, points: [{x, y, row}]}], one point per budget. */
  function chosen() {
    const { cost, measure, grid } = Object.fromEntries(new FormData(form)), found = new Map();
    for (const row of data.rows) {
      const x = row[cost], y = Math.abs(row[measure]), adaptive = row.nfe === null;
      if (!(x > 0 && y > 0) || hidden.has(row.solver)) continue;
      if (!adaptive && grid && !["best", "all", row.grid].includes(grid)) continue;
      const key = JSON.stringify([row.solver, grid === "all" && row.grid]);
      if (!found.has(key)) found.set(key, { solver: row.solver, adaptive, points: new Map() });
      const points = found.get(key).points, at = adaptive ? row.rtol : row.nfe;
      if (!points.has(at) || y < points.get(at).y) points.set(at, { x, y, row });
    }
    return [...found.values()].map((line) => ({
      ...line, points: [...line.points.values()].sort((a, b) => a.row.spent - b.row.spent),
    }));
  }

  /** Draw grid lines and the names of ticks and axes; return the two scales. */
  function axes(points, width, height, cost, measure) {
    const right = width - EDGES.right, bottom = height - EDGES.bottom;
    const ends = (values) => {
      const low = Math.min(...values), high = Math.max(...values), pad = Math.max(1.06, (high / low) ** 0.03);
      return [low / pad, high * pad];
    };
    const [x0, x1] = ends(points.map((p) => p.x)), [y0, y1] = ends(points.map((p) => p.y));
    const x = (value) => EDGES.left + (Math.log(value / x0) / Math.log(x1 / x0)) * (right - EDGES.left);
    const y = (value) => bottom - (Math.log(value / y0) / Math.log(y1 / y0)) * (bottom - EDGES.top);
    const stops = cost === "spent" && data.budgets.length ? data.budgets : logTicks(x0, x1, width / 60);
    let last = -Infinity;
    for (const stop of stops.filter((stop) => stop >= x0 && stop <= x1)) {
      const name = tickName(stop), room = 7 * name.length + 5;
      draw("line", { class: "rule", x1: x(stop), x2: x(stop), y1: EDGES.top, y2: bottom }, svg);
      if (x(stop) - last < room) continue;
      draw("text", { x: x(stop), y: bottom + 17, "text-anchor": "middle" }, svg, name);
      last = x(stop);
    }
    for (const stop of logTicks(y0, y1, height / 34)) {
      draw("line", { class: "rule", x1: EDGES.left, x2: right, y1: y(stop), y2: y(stop) }, svg);
      draw("text", { x: EDGES.left - 8, y: y(stop), dy: "0.35em", "text-anchor": "end" }, svg, tickName(stop));
    }
    const named = { spent: "evaluations per sample (NFE)", seconds: `seconds for all ${data.n} samples` }[cost];
    draw("text", { x: right, y: height - 6, "text-anchor": "end" }, svg, `${named} →`);
    draw("text", { x: 0, y: 12 }, svg, `↑ ${measure.label}`);
    svg.setAttribute("aria-label", `${measure.label} against ${named}, one line per solver; arrow keys go from point to point`);
    return [x, y];
  }

  function render() {
    const width = section.querySelector(".plot").clientWidth, height = Math.round(Math.min(460, Math.max(300, width * 0.62)));
    if (!width) return;  // in a tab that is not shown
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    hide();
    lines = chosen();
    const points = lines.flatMap((line) => line.points);
    if (!points.length) {
      draw("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, svg, "Nothing to show: choose a solver, or another grid.");
      return;
    }
    const measure = data.measures.find((m) => m.key === form.elements.measure.value);
    const [x, y] = axes(points, width, height, form.elements.cost.value, measure);
    const front = pareto(points);
    const steps = front.map((p, i) => `${i ? `H${x(p.x)}V` : `M${x(p.x)},${EDGES.top}V`}${y(p.y)}`).join("");
    draw("path", { class: "front", d: `${steps}H${width - EDGES.right}` }, svg);
    for (const line of lines) {
      const group = draw("g", { class: `series${line.adaptive ? " adaptive" : ""}`, "data-solver": line.solver }, svg);
      look(group, line.solver);
      draw("path", { class: "line", d: `M${line.points.map((p) => `${x(p.x)},${y(p.y)}`).join("L")}` }, group);
      for (const point of line.points) {
        Object.assign(point, { at: [x(point.x), y(point.y)], ring: front.includes(point) });
        if (point.ring) draw("circle", { class: "ring", cx: point.at[0], cy: point.at[1], r: 8 }, group);
        point.mark = draw("path", {
          class: "mark", d: mark(line.solver), transform: `translate(${point.at})`, tabindex: -1, role: "img",
          "aria-label": described(point, measure).join(", "),
        }, group);
        point.mark.addEventListener("focus", () => show(point));
        point.mark.addEventListener("blur", hide);
      }
    }
    lines[0].points[0].mark.setAttribute("tabindex", 0);
  }

  /** A point in words: its name, then its numbers. */
  function described({ row, y, ring }, measure) {
    const seconds = row.seconds ? [`${digits(row.seconds)} s`] : [];
    const numbers = [[spending(row), ...seconds].join(", "), `${measure.label} ${digits(y)}`];
    return [`${row.solver}, ${where(row)}`, ...numbers, ...(ring ? ["on the Pareto front"] : [])];
  }

  function show(point) {
    const measure = data.measures.find((m) => m.key === form.elements.measure.value);
    const [name, ...numbers] = described(point, measure);
    tip.replaceChildren(make("strong", { textContent: name }), ...numbers.map((text) => make("div", { textContent: text })));
    tip.hidden = false;
    const [x, y] = point.at, width = svg.clientWidth;
    const left = x + 14 + tip.offsetWidth > width ? Math.max(0, Math.min(x - 14 - tip.offsetWidth, width - tip.offsetWidth)) : x + 14;
    tip.style.transform = `translate(${left}px, ${y - tip.offsetHeight - 10 < 0 ? y + 14 : y - tip.offsetHeight - 10}px)`;
    light(point.row.solver);
  }

  function hide() {
    tip.hidden = true;
    light(null);
  }

  function light(solver) {
    svg.classList.toggle("dimmed", solver !== null);
    for (const group of svg.querySelectorAll(".series")) group.classList.toggle("lit", group.dataset.solver === solver);
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const away = (point) => Math.hypot(point.at[0] - x, point.at[1] - y);
    const nearest = lines.flatMap((line) => line.points).reduce((a, b) => (a && away(a) <= away(b) ? a : b), undefined);
    if (nearest && away(nearest) < NEAR) show(nearest);
    else hide();
  });
  svg.addEventListener("pointerleave", hide);

  svg.addEventListener("keydown", (event) => {
    const i = lines.findIndex((line) => line.points.some((point) => point.mark === event.target));
    if (i < 0 || !event.key.startsWith("Arrow")) return;
    event.preventDefault();
    const here = lines[i].points.findIndex((point) => point.mark === event.target);
    const along = { ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0, across = { ArrowUp: -1, ArrowDown: 1 }[event.key] ?? 0;
    const line = lines[(i + across + lines.length) % lines.length];
    const from = lines[i].points[here].x, away = (point) => Math.abs(Math.log(point.x / from));
    const next = across ? line.points.reduce((a, b) => (away(a) <= away(b) ? a : b)) : line.points[here + along];
    if (!next) return;
    event.target.setAttribute("tabindex", -1);
    next.mark.setAttribute("tabindex", 0);
    next.mark.focus();
  });

  /** One button per solver: shown while it is pressed, highlighted while it is pointed at. */
  const drawn = data.solvers.filter((solver) => data.rows.some((row) => row.solver === solver && row.spent !== null));
  const keys = drawn.map((solver) => {
    const key = make("button", { type: "button" });
    const swatch = draw("svg", { viewBox: "-16 -8 32 16", "aria-hidden": "true" }, key);
    const adaptive = data.rows.some((row) => row.solver === solver && row.nfe === null);
    const group = draw("g", { class: adaptive ? "adaptive" : "" }, swatch);
    look(group, solver);
    draw("path", { class: "line", d: "M-16,0H16" }, group);
    draw("path", { class: "mark", d: mark(solver) }, group);
    key.append(solver);
    key.addEventListener("click", () => { hidden.delete(solver) || hidden.add(solver); update(); });
    for (const event of ["pointerenter", "focus"]) key.addEventListener(event, () => hidden.has(solver) || light(solver));
    for (const event of ["pointerleave", "blur"]) key.addEventListener(event, () => light(null));
    return key;
  });
  function update() {
    keys.forEach((key, i) => key.setAttribute("aria-pressed", !hidden.has(drawn[i])));
    render();
  }
  section.querySelector(".keys").append(...keys);
  for (const button of section.querySelectorAll("[data-show]")) {
    button.addEventListener("click", () => {
      hidden.clear();
      if (button.dataset.show === "none") drawn.forEach((solver) => hidden.add(solver));
      update();
    });
  }
  for (const event of ["input", "change"]) form.addEventListener(event, render);
  new ResizeObserver(render).observe(section.querySelector(".plot"));
  update();
}
