"use strict";
// The page's only script: it draws the interactive view and makes tables sortable. Text from the run's files is
// only ever written as text, never as HTML, and nothing is fetched.
(() => {
  const svgSpace = "http://www.w3.org/2000/svg";
  const collator = new Intl.Collator("en", { numeric: true });

  /** The number that a cell of text starts with; NaN for a dash and for words. */
  function numberOf(text) {
    const found = /^[+\-]?(\d[\d,]*\.?\d*|\.\d+)(e[+\-]?\d+)?/.exec(text.trim().replace("−", "-"));
    return found ? Number(found[0].replaceAll(",", "")) : NaN;
  }

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function shape(name, attributes, text = "") {
    const made = document.createElementNS(svgSpace, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  }

  // ---- Tables ----

  function makeSortable(table) {
    const headings = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const original = [...body.rows];
    // A table of names and values has its own order.
    if (original.length < 2 || headings.some((heading) => !heading.textContent.trim())) return;
    headings.forEach((heading, column) => {
      const button = element("button", { type: "button", class: "sort" }, heading.textContent);
      heading.replaceChildren(button);
      heading.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const next = { none: "ascending", ascending: "descending", descending: "none" }[heading.getAttribute("aria-sort")];
        for (const other of headings) other.setAttribute("aria-sort", "none");
        heading.setAttribute("aria-sort", next);
        body.append(...(next === "none" ? original : sortRows(original, column, next === "ascending" ? 1 : -1)));
      });
    });
  }

  function sortRows(rows, column, direction) {
    const text = (row) => row.cells[column].textContent.trim();
    const isMissing = (row) => text(row) === "" || text(row) === "–";
    const [known, missing] = [rows.filter((row) => !isMissing(row)), rows.filter(isMissing)];
    const numeric = known.every((row) => !Number.isNaN(numberOf(text(row))));
    const compare = numeric
      ? (a, b) => numberOf(text(a)) - numberOf(text(b))
      : (a, b) => collator.compare(text(a), text(b));
    // What a bin does not have is neither small nor large.
    return [...known.sort((a, b) => direction * compare(a, b)), ...missing];
  }

  // ---- The interactive view ----

  /** An axis over all given values, and zero. */
  function makeAxis(values, [floor, ceiling], marks) {
    const known = [0, ...marks, ...values.filter((value) => !Number.isNaN(value))];
    const low = Math.max(Math.min(...known), floor);
    const high = Math.min(Math.max(...known), ceiling);
    const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5].find((one) => (high - low) / one <= 6) ?? 0.5;
    const first = Math.floor(low / step + 1e-9);
    const last = Math.max(Math.ceil(high / step - 1e-9), first + 1);
    const ticks = Array.from({ length: last - first + 1 }, (_, k) => (first + k) * step);
    const [start, end] = [ticks[0], ticks[ticks.length - 1]];
    const digits = step < 0.1 || step === 0.25 ? 2 : 1;
    return {
      // A phone has room for every other label; zero is one of those that stay.
      ticks: ticks.map((tick, k) => [tick, tick.toFixed(digits).replace("-", "−"), (first + k) % 2 ? "odd" : "even"]),
      place: (value) => `${(3 + (94 * (Math.min(Math.max(value, start), end) - start)) / (end - start)).toFixed(2)}%`,
      beyond: (value) => (value < start ? -1 : value > end ? 1 : 0),
    };
  }

  function drawGrid(axis, height, dashed) {
    const picture = shape("svg", { height, width: "100%", "aria-hidden": "true", focusable: "false" });
    const line = (value, kind) => {
      const x = axis.place(value);
      picture.append(shape("line", { x1: x, x2: x, y1: 0, y2: height, class: kind }));
    };
    for (const [tick] of axis.ticks) line(tick, Math.abs(tick) < 1e-9 ? "zero" : "grid");
    for (const value of dashed) line(value, "limit");
    return picture;
  }

  function drawTicks(axis, title) {
    const picture = shape("svg", { height: 18, width: "100%", "aria-hidden": "true", focusable: "false" });
    for (const [tick, text, kind] of axis.ticks) {
      picture.append(shape("text", { x: axis.place(tick), y: 14, "text-anchor": "middle", class: kind }, text));
    }
    return element("span", { class: "axis" }, element("span", { class: "axis-title" }, title), picture);
  }

  function drawMark(picture, axis, cells, kind, y) {
    const [mean, low, high] = cells.map(numberOf);
    if (Number.isNaN(mean)) return;
    if (!Number.isNaN(low)) {
      picture.append(shape("line", { x1: axis.place(low), x2: axis.place(high), y1: y, y2: y, class: `range ${kind}` }));
    }
    const x = axis.place(mean);
    picture.append(
      kind === "r2_global"
        ? shape("rect", { x, y: y - 4.5, width: 9, height: 9, transform: "translate(-4.5 0)", class: `mark ${kind}` })
        : shape("circle", { cx: x, cy: y, r: 5, class: `mark ${kind}` }),
    );
    // An arrow tells that a value, or an end of its interval, lies beyond the axis.
    for (const side of new Set([low, mean, high].map(axis.beyond))) {
      if (side) {
        const anchor = side < 0 ? { x: "0%", "text-anchor": "start" } : { x: "100%", "text-anchor": "end" };
        picture.append(shape("text", { ...anchor, y: y + 4, class: kind }, side < 0 ? "◂" : "▸"));
      }
    }
  }

  function explore(root, content) {
    const state = { ...content.start, order: "bin" };
    let selected = null;
    const orders = [["bin", "bin number"], ["delta_r2", "ΔR², highest first"], ["r2_oracle", "R²_oracle, highest first"],
      ["n", "test spectra, most first"]];
    const names = { label: "Label", level: "Noise level", seed: "Seed", scope: "Test spectra", order: "Order of bins" };
    const choices = { ...content.choices, order: orders };
    const limits = content.thresholds.map(([, value]) => numberOf(value));
    /** Axes for all that a label can show: its switches move marks and not the axes. */
    function makeAxes(label) {
      const rows = Object.entries(content.rows).filter(([key]) => key.startsWith(`${label}|`));
      const all = (merit) => rows.flatMap(([, row]) => row[merit].map(numberOf));
      return {
        r2: makeAxis([...all("r2_global"), ...all("r2_oracle")], [-0.5, 1], []),
        delta: makeAxis(all("delta_r2"), [-0.5, 1], limits),
      };
    }
    let axes = makeAxes(state.label);
    const [list, head, details, status] = ["list", "head", "details", "state"].map((name) =>
      root.querySelector(`.explorer-${name}`));
    const selects = {};

    const rowOf = (part) => content.rows[`${state.label}|${state.level}|${state.seed}|${part.id}`];
    const factOf = (row, name) => row.facts[content.facts.indexOf(name)];
    const wordsOf = (name) => choices[name].find(([value]) => value === state[name])[1];

    function addControls() {
      const controls = root.querySelector(".explorer-controls");
      for (const [name, options] of Object.entries(choices)) {
        if (options.length < 2) continue;
        const select = element("select", { id: `explorer-${name}` });
        for (const [value, words] of options) select.append(element("option", { value }, words));
        select.value = state[name];
        select.addEventListener("change", () => {
          state[name] = select.value;
          draw();
        });
        selects[name] = select;
        controls.append(element("div", {}, element("label", { for: select.id }, names[name]), select));
      }
    }

    /** A noise level that draws nothing from a seed has no rows of single seeds. */
    function allowSeeds() {
      if (!selects.seed) return;
      for (const option of selects.seed.options) {
        option.disabled = !(`${state.label}|${state.level}|${option.value}|${state.scope}` in content.rows);
        if (option.disabled && option.selected) state.seed = selects.seed.value = content.start.seed;
      }
    }

    function shownParts() {
      const bins = content.parts.filter((part) => /^\d+$/.test(part.id) && rowOf(part));
      if (state.order !== "bin") {
        const key = (part) => numberOf(state.order === "n" ? factOf(rowOf(part), "n test") : rowOf(part)[state.order][0]);
        const low = (value) => (Number.isNaN(value) ? -Infinity : value);
        bins.sort((a, b) => (low(key(b)) > low(key(a)) ? 1 : low(key(b)) < low(key(a)) ? -1 : 0));
      }
      const [whole, outside] = [state.scope, "outside"].map((id) => content.parts.find((part) => part.id === id));
      return [whole, ...bins, ...(state.scope === "all" ? [outside] : [])].filter(rowOf);
    }

    function addRow(part) {
      const row = rowOf(part);
      const r2 = drawGrid(axes.r2, 30, []);
      drawMark(r2, axes.r2, row.r2_oracle, "r2_oracle", 10);
      drawMark(r2, axes.r2, row.r2_global, "r2_global", 21);
      const delta = drawGrid(axes.delta, 30, limits);
      const isFew = row.r2_global[0] === "–";
      const lack = part.id === "outside" ? "no expert" : isFew ? "too few test spectra" : "";
      if (lack) r2.append(shape("text", { x: "50%", y: 19, "text-anchor": "middle", class: "lack" }, lack));
      drawMark(delta, axes.delta, row.delta_r2, "delta_r2", 15);
      const said = Object.entries(content.merits).map(([merit, title]) => `${title} ${row[merit][0]}`);
      const count = factOf(row, "n test");
      const option = element("div", { role: "option", tabindex: "-1", class: "explorer-row", "data-part": part.id,
        "aria-selected": "false", "aria-label": `${part.name}: ${said.join(", ")}, ${count} test spectra` });
      option.append(element("span", { class: "name" }, part.name), r2, delta, element("span", { class: "count" }, count));
      option.addEventListener("focus", () => select(option));
      option.addEventListener("click", () => option.focus()); // not every phone focuses what is tapped
      option.addEventListener("pointerenter", () => describe(part));
      list.append(option);
    }

    function describe(part) {
      const row = rowOf(part);
      const lines = element("dl");
      const tell = (kind, name, ...words) =>
        lines.append(element("div", { class: kind }, element("dt", {}, name), element("dd", {}, ...words)));
      for (const [merit, title] of Object.entries(content.merits)) {
        const [mean, low, high] = row[merit];
        if (mean !== "–") tell("merit", title, element("strong", {}, mean), low === "–" ? "" : ` (${low} to ${high})`);
      }
      content.facts.forEach((name, k) => row.facts[k] !== "–" && tell("fact", name, row.facts[k]));
      const where = part.where ? [element("p", {}, part.where)] : [];
      const few = row.r2_global[0] === "–" && part.id !== "outside";
      if (few) where.push(element("p", {}, "Too few test spectra for an R²."));
      if (content.leaks[state.label]) where.push(element("p", {}, content.leaks[state.label]));
      details.replaceChildren(element("h3", {}, part.name), ...where, lines);
    }

    function select(option) {
      for (const other of list.children) {
        other.setAttribute("aria-selected", String(other === option));
        other.tabIndex = other === option ? 0 : -1;
      }
      selected = option.dataset.part;
      describe(content.parts.find((part) => part.id === selected));
    }

    function draw() {
      allowSeeds();
      axes = makeAxes(state.label);
      head.replaceChildren(element("span"), drawTicks(axes.r2, "R²"), drawTicks(axes.delta, "ΔR²"),
        element("span", { class: "count" }, "n test"));
      list.replaceChildren();
      shownParts().forEach(addRow);
      select([...list.children].find((option) => option.dataset.part === selected) ?? list.firstElementChild);
      status.textContent = `Shown: ${wordsOf("label")}; noise level ${wordsOf("level")}; seed: ${wordsOf("seed")}; `
        + `test spectra: ${wordsOf("scope")}.`;
    }

    function moveBy(event) {
      const rows = [...list.children];
      const at = rows.indexOf(document.activeElement);
      const target = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
      if (target === undefined || at < 0) return;
      event.preventDefault();
      rows[Math.min(Math.max(target, 0), rows.length - 1)].focus();
    }

    list.addEventListener("keydown", moveBy);
    list.addEventListener("pointerleave", () => describe(content.parts.find((part) => part.id === selected)));
    addControls();
    draw();
    root.hidden = false;
    document.getElementById("explorer-lack").remove();
  }

  explore(document.getElementById("explorer"), JSON.parse(document.getElementById("explorer-content").textContent));
  document.querySelectorAll(".scroll > table").forEach(makeSortable);
})();
