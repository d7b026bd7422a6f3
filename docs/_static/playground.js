// The playground: a row of the CW loss whose settings can be moved. cw_row.js computes it; here it is drawn.
"use strict";

(() => {
  // ---- what can be set ----------------------------------------------------------------------------------------------

  // Arguments of cw_loss and numbers of the row. `low`, `high` and `step` are those of the value; a slider of a `log`
  // scale moves by equal factors. `optional` has a box that switches the argument on; off, it is None. `idle` says why a
  // setting changes nothing beside the others.
  const idleWithoutPrior = (s) => (s.prior === 0 ? "No effect while π = 0." : "");
  const idleWithoutWeights = (s) => (s.weighting === "none" ? "No effect without weights." : "");
  const CONTROLS = [
    {
      group: "The loss",
      name: "weighting", label: "Weighting ω", kind: "choice", choices: ["none", "sigmoid", "exponential", "linear"],
      help: "How much a negative counts, depending on its margin.",
    },
    {
      name: "temperature", label: "Temperature τ", low: 0.02, high: 1, log: true, first: 0.1,
      help: "Lower: the highest-scoring negatives take more of the gradient.",
    },
    {
      name: "weight_temperature", label: "Scale of the weights ρ", low: 0.02, high: 2, log: true, optional: true, first: 0.3,
      help: "Off: τ with sigmoid weights, 1 with the others.", idle: idleWithoutWeights,
    },
    {
      name: "prior", label: "Prior π", low: 0, high: 0.9, step: 0.01, first: 0,
      help: "The share of the negatives that you believe are really positives.",
    },
    {
      name: "extras", label: "Extra positives M", low: 0, high: 40, step: 1, first: 0,
      help: "Scores of items that the user probably likes.", idle: idleWithoutPrior,
    },
    {
      name: "floor", label: "Floor ε", low: 0.05, high: 1, step: 0.01, first: 0.3,
      help: "The correction leaves at least this share of the negative mass.",
      idle: (s) => (s.min_margin !== null ? "Replaced by the absolute floor." : idleWithoutPrior(s)),
    },
    {
      name: "positive_temperature", label: "Temperature of the positive τ⁺", low: 0.02, high: 1, log: true, optional: true,
      first: 0.125,
      help: "Off: equal to τ.",
    },
    {
      group: "The row",
      name: "pos", label: "Score of the positive s⁺", low: -0.4, high: 0.4, step: 0.01, first: 0.2,
      help: "Scores are half cosines, from −0.5 to 0.5.",
    },
    {
      name: "margin", label: "Margin of your negative", low: -0.7, high: 0.7, step: 0.01, first: 0.1,
      help: "You can also drag it in the plot. Above 0 it scores higher than the positive.",
    },
    {
      name: "number", label: "Number of negatives N", low: 2, high: 200, log: true, whole: true, first: 40,
      help: "Your negative, and others with scores around 0.",
    },
    {
      group: "More arguments",
      name: "include_positive", label: "InfoNCE form: log(1 + N·G)", kind: "flag",
    },
    {
      name: "detach_weights", label: "Weights are constants in the gradient", kind: "flag", idle: idleWithoutWeights,
    },
    {
      name: "normalize_weights", label: "Divide by the sum of the weights", kind: "flag", idle: idleWithoutWeights,
    },
    {
      name: "min_margin", label: "Absolute floor m", low: -1, high: 0.5, step: 0.01, optional: true, first: -1,
      help: "In place of ε: the negative mass stays at or above exp(m/τ).",
    },
    {
      name: "confidence_temperature", label: "Confidence τ_c", low: 0.05, high: 5, log: true, optional: true, first: 1.25,
      help: "Multiplies the row's loss by 2σ((s⁺ − β)/τ_c).",
    },
    {
      name: "confidence_threshold", label: "Threshold of the confidence β", low: -0.5, high: 0.5, step: 0.01, first: 0,
      idle: (s) => (s.confidence_temperature === null ? "No effect without a confidence." : ""),
    },
    {
      name: "surrogate", label: "Surrogate", kind: "choice", choices: ["exp", "tanh", "atan", "relu"],
      help: "The function used in place of exp(d/τ).",
    },
  ];
  const OF_ROW = ["pos", "margin", "number", "extras"];

  // Each is a preset of cw_ext.presets, as the test checks, or is explained on the page.
  const PRESETS = {
    cw: { label: "CW (the default)", loss: {} },
    likely: {
      label: "CW with likely positives", loss: { weighting: "none", prior: 0.1 }, row: { extras: 20 },
    },
    sl: { label: "SL, the sampled softmax", loss: { weighting: "none" } },
    infonce: { label: "InfoNCE", loss: { weighting: "none", include_positive: true } },
    dcl: { label: "DCL", loss: { weighting: "none", prior: 0.1, min_margin: -1, include_positive: true } },
    slk: { label: "SL@K, with β = 0", loss: { weighting: "none", confidence_temperature: 1.25 } },
    psl: { label: "PSL with tanh", loss: { weighting: "none", surrogate: "tanh" } },
  };

  const first = () => {
    const state = { ...CwRow.DEFAULTS };
    for (const c of CONTROLS) if (OF_ROW.includes(c.name)) state[c.name] = c.first;
    return state;
  };
  const byName = Object.fromEntries(CONTROLS.map((c) => [c.name, c]));
  const state = first();

  // ---- the row ------------------------------------------------------------------------------------------------------

  // Scores with the quantiles of a logistic distribution; three decimals, so that they can be copied.
  const scoresAround = (mean, spread, count) =>
    Array.from({ length: count }, (_, j) => {
      const p = (j + 0.5) / count;
      return Math.round(1000 * (mean + spread * Math.log(p / (1 - p)))) / 1000;
    });
  const rounded = (x, decimals) => Number(x.toFixed(decimals));

  // The negative that can be moved is the first.
  const scoresOf = (s) => ({
    pos: s.pos,
    negatives: [rounded(s.pos + s.margin, 3), ...scoresAround(0, 0.06, s.number - 1)],
    extras: scoresAround(0.15, 0.05, s.extras),
  });
  const lossOf = (s) => Object.fromEntries(Object.keys(CwRow.DEFAULTS).map((name) => [name, s[name]]));
  const softmaxOf = (s) => ({ weighting: "none", temperature: s.temperature });

  // ---- texts --------------------------------------------------------------------------------------------------------

  const shown = (x, digits = 3) => {
    if (!Number.isFinite(x)) return x > 0 ? "∞" : x < 0 ? "−∞" : "–";
    const size = Math.abs(Number(x.toPrecision(digits)));
    if (size < 5e-5) return "0";
    const text = x.toFixed(Math.min(4, Math.max(0, digits - 1 - Math.floor(Math.log10(size)))));
    return text.replace("-", "−");
  };
  const percent = (x) => (x > 0 && x < 0.001 ? "< 0.1 %" : `${shown(100 * x, x < 0.1 ? 2 : 3)} %`);
  const valueText = (c, value) => (c.whole || c.step === 1 ? String(value) : shown(value));

  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === true) made.setAttribute(name, "");
      else if (value !== false && value !== null) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  };
  const svgElement = (tag, attributes = {}, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };

  // ---- controls -----------------------------------------------------------------------------------------------------

  // A slider has whole steps, so that the arrow keys are exact.
  const STEPS_OF_LOG = 100;
  const positions = (c) => (c.log ? STEPS_OF_LOG : Math.round((c.high - c.low) / c.step));
  const valueAt = (c, position) => {
    if (!c.log) return rounded(c.low + position * c.step, 4);
    const value = c.low * (c.high / c.low) ** (position / STEPS_OF_LOG);
    return c.whole ? Math.round(value) : Number(value.toPrecision(3));
  };
  const positionOf = (c, value) => {
    const place = c.log ? STEPS_OF_LOG * Math.log(value / c.low) / Math.log(c.high / c.low) : (value - c.low) / c.step;
    return Math.min(positions(c), Math.max(0, Math.round(place)));
  };

  const inputs = {};  // by name: what shows the state's value in its control

  function control(c) {
    const made = controlWithoutIdle(c);
    const show = inputs[c.name];
    const note = made.querySelector(".idle");
    inputs[c.name] = () => {
      show();
      const why = c.idle?.(state) ?? "";
      made.classList.toggle("without-effect", why !== "");
      note.textContent = why && ` ${why}`;
    };
    return made;
  }

  function controlWithoutIdle(c) {
    const id = `playground-${c.name}`;
    const describedBy = `${id}-help`;
    const help = element("span", { class: "help", id: describedBy }, c.help ?? "", element("span", { class: "idle" }));
    if (c.kind === "flag") {
      const box = element("input", { type: "checkbox", id, class: "form-check-input", "aria-describedby": describedBy });
      box.addEventListener("change", () => set({ [c.name]: box.checked }));
      inputs[c.name] = () => { box.checked = state[c.name]; };
      return element("div", { class: "control flag" }, box, element("label", { for: id }, c.label), help);
    }
    if (c.kind === "choice") {
      const select = element("select", { id, class: "form-select", "aria-describedby": describedBy },
        ...c.choices.map((choice) => element("option", { value: choice }, choice)));
      select.addEventListener("change", () => set({ [c.name]: select.value }));
      inputs[c.name] = () => { select.value = state[c.name]; };
      return element("div", { class: "control" }, element("label", { for: id }, c.label), select, help);
    }
    const slider = element("input", {
      type: "range", id, min: 0, max: positions(c), step: 1, class: "form-range", "aria-describedby": describedBy,
    });
    const value = element("output", { for: id, "aria-live": "off" });  // the slider itself tells its value
    const box = c.optional
      ? element("input", { type: "checkbox", class: "form-check-input", "aria-label": `Set ${c.label}` }) : null;
    let last = c.first;
    slider.addEventListener("input", () => {
      // A value between two positions, such as one of a preset, stays until the slider moves.
      last = valueAt(c, Number(slider.value));
      set({ [c.name]: last });
    });
    box?.addEventListener("change", () => set({ [c.name]: box.checked ? last : null }));
    inputs[c.name] = () => {
      const off = state[c.name] === null;
      if (!off) last = state[c.name];
      if (box) box.checked = !off;
      slider.disabled = off;
      slider.value = positionOf(c, last);
      value.textContent = off ? "off" : valueText(c, state[c.name]);
      slider.setAttribute("aria-valuetext", value.textContent);
    };
    return element("div", { class: "control" },
      element("div", { class: "heading" }, ...(box ? [box] : []), element("label", { for: id }, c.label), value), slider, help);
  }

  // ---- plots --------------------------------------------------------------------------------------------------------

  const LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 40;

  // Round numbers that divide [low, high] into about `count` parts.
  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
    const result = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; ++k) result.push(k * step);
    const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    return result.map((value) => [value, value.toFixed(decimals).replace("-", "−").replace(/^−(0\.?0*)$/, "$1")]);
  }

  class Plot {
    constructor(height, xLabel, yLabel) {
      this.height = height;
      this.labels = [xLabel, yLabel];
      this.svg = svgElement("svg", { role: "img", height, preserveAspectRatio: "none" });
      this.width = 0;
    }

    // Empties it and draws axes for x in [x0, x1] and y in [y0, y1].
    start(x0, x1, y0, y1) {
      this.width = Math.max(260, this.svg.parentElement?.clientWidth || 600);
      this.svg.setAttribute("width", this.width);
      this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
      const right = this.width - RIGHT, bottom = this.height - BOTTOM;
      this.x = (value) => LEFT + (value - x0) / (x1 - x0) * (right - LEFT);
      this.y = (value) => bottom - (value - y0) / (y1 - y0) * (bottom - TOP);
      this.xAt = (pixel) => x0 + (pixel - LEFT) / (right - LEFT) * (x1 - x0);
      this.svg.replaceChildren();
      for (const [value, text] of ticks(y0, y1, 4)) {
        this.add("line", { x1: LEFT, x2: right, y1: this.y(value), y2: this.y(value), class: value === 0 ? "zero" : "grid" });
        this.text(text, LEFT - 6, this.y(value) + 4, "end");
      }
      for (const [value, text] of ticks(x0, x1, this.width < 480 ? 5 : 8)) {
        this.add("line", { x1: this.x(value), x2: this.x(value), y1: TOP, y2: bottom, class: value === 0 ? "zero" : "grid" });
        this.text(text, this.x(value), bottom + 16, "middle");
      }
      this.text(this.labels[0], (LEFT + right) / 2, this.height - 6, "middle", "label");
      this.text(this.labels[1], 12, (TOP + bottom) / 2, "middle", "label",
        `rotate(-90 12 ${(TOP + bottom) / 2})`);
    }

    add(tag, attributes) {
      this.svg.append(svgElement(tag, attributes));
    }

    text(text, x, y, anchor, cls = "tick", transform = null) {
      const attributes = { x, y, "text-anchor": anchor, class: cls };
      if (transform) attributes.transform = transform;
      this.svg.append(svgElement("text", attributes, text));
    }

    line(points, cls) {
      const path = points.map(([x, y], k) => `${k ? "L" : "M"}${this.x(x).toFixed(2)} ${this.y(y).toFixed(2)}`).join("");
      this.add("path", { d: path, class: `curve ${cls}` });
    }
  }

  const grid = (low, high, count) => Array.from({ length: count + 1 }, (_, k) => low + (high - low) * k / count);
  const X_MARGIN = 0.75;
  const gradients = new Plot(250, "margin d = s − s⁺ of the negative", "gradient");
  const losses = new Plot(180, "score of the positive s⁺", "loss");

  function drawGradients(row, softmax, scores) {
    const margins = scores.negatives.map((s) => s - scores.pos);
    const places = grid(-X_MARGIN, X_MARGIN, 240);
    const curve = (of) => margins.concat(places).sort((a, b) => a - b).map((d) => [d, of.ofNegative(d)]);
    // High enough for the dots; a curve may leave the plot.
    const all = [...row.gradients.negatives, ...softmax.gradients.negatives];
    const high = Math.max(...all, 1e-9), low = Math.min(...all, 0);
    gradients.start(-X_MARGIN, X_MARGIN, low < 0 ? low * 1.1 : 0, high * 1.12);
    const { svg } = gradients;
    const clip = svgElement("clipPath", { id: "playground-inside" }, svgElement("rect", {
      x: LEFT, y: TOP, width: gradients.width - LEFT - RIGHT, height: gradients.height - BOTTOM - TOP + 2,
    }));
    svg.append(clip);
    gradients.line(curve(softmax), "softmax");
    gradients.line(curve(row), "cw");
    for (const [of, cls, radius] of [[softmax, "softmax", 3], [row, "cw", 3.5]]) {
      of.gradients.negatives.forEach((value, j) => {
        if (j > 0) gradients.add("circle", { cx: gradients.x(margins[j]), cy: gradients.y(value), r: radius, class: `dot ${cls}` });
      });
    }
    const at = gradients.x(margins[0]);
    gradients.add("line", {
      x1: at, x2: at, y1: gradients.y(0), y2: gradients.y(row.gradients.negatives[0]), class: "stem",
    });
    gradients.add("circle", { cx: at, cy: gradients.y(softmax.gradients.negatives[0]), r: 4, class: "dot softmax" });
    gradients.add("circle", { cx: at, cy: gradients.y(row.gradients.negatives[0]), r: 8, class: "dot yours" });
    for (const path of svg.querySelectorAll("path.curve")) path.setAttribute("clip-path", "url(#playground-inside)");
  }

  function drawLosses(row, softmax) {
    // The negatives stay where they are while the positive moves.
    const fixed = scoresOf(state);
    const at = grid(-0.5, 0.5, 160).map((pos) => {
      const scores = { ...fixed, pos };
      return { pos, row: CwRow.row(scores, lossOf(state)), softmax: CwRow.row(scores, softmaxOf(state)) };
    });
    const values = at.flatMap((x) => [x.row.loss, x.softmax.loss]).filter(Number.isFinite);
    const low = Math.min(...values), high = Math.max(...values);
    const room = Math.max(0.05 * (high - low), 0.1);
    losses.start(-0.5, 0.5, low - room, high + room);
    const step = at[1].pos - at[0].pos;
    for (const x of at.filter((y) => y.row.binds)) {
      const from = Math.max(-0.5, x.pos - step / 2), to = Math.min(0.5, x.pos + step / 2);
      losses.add("rect", {
        x: losses.x(from), width: losses.x(to) - losses.x(from) + 0.3, y: TOP, height: losses.height - BOTTOM - TOP, class: "bound",
      });
    }
    losses.line(at.map((x) => [x.pos, x.softmax.loss]), "softmax");
    losses.line(at.map((x) => [x.pos, x.row.loss]), "cw");
    losses.add("circle", { cx: losses.x(state.pos), cy: losses.y(softmax.loss), r: 4, class: "dot softmax" });
    losses.add("circle", { cx: losses.x(state.pos), cy: losses.y(row.loss), r: 7, class: "dot cw" });
  }

  // ---- the same in Python -------------------------------------------------------------------------------------------

  const python = (value) => {
    if (value === null) return "None";
    if (value === true) return "True";
    if (value === false) return "False";
    return typeof value === "string" ? `"${value}"` : String(value);
  };
  function wrapped(parts, before, after) {
    const lines = [before];
    parts.forEach((part, k) => {
      const text = part + (k < parts.length - 1 ? "," : "");
      const line = lines[lines.length - 1];
      if (line.length + text.length > 76) lines.push(`    ${text}`);
      else lines[lines.length - 1] = line + (line.endsWith("(") || line.endsWith("[") ? "" : " ") + text;
    });
    return lines.join("\n") + after;
  }
  function pythonCall(s, scores) {
    const changed = Object.entries(lossOf(s)).filter(([name, value]) => value !== CwRow.DEFAULTS[name]);
    const tensor = (name, values) =>
      wrapped(values.map(python), `${name} = torch.tensor([`, "], dtype=torch.float64)");
    const lines = [
      "import torch",
      "from cw_ext import cw_loss",
      "",
      `pos = torch.tensor(${python(scores.pos)}, dtype=torch.float64)`,
      tensor("neg", scores.negatives),
    ];
    if (scores.extras.length) lines.push(tensor("extra", scores.extras));
    const given = ["pos", "neg", ...(scores.extras.length ? ["extra_pos_scores=extra"] : []),
      ...changed.map(([name, value]) => `${name}=${python(value)}`)];
    return [...lines, "", wrapped(given, "loss = cw_loss(", ")"), "print(loss)"].join("\n");
  }

  // ---- the page -----------------------------------------------------------------------------------------------------

  const preset = element("select", { id: "playground-preset", class: "form-select" });
  const loss = element("output", { class: "number", "aria-labelledby": "playground-loss-label", "aria-live": "off" });
  const reading = element("div", { class: "reading" });
  const announced = element("div", { class: "visually-hidden", "aria-live": "polite" });
  const code = element("pre", { class: "code", tabindex: "0", "aria-label": "Python" });
  const table = element("tbody");

  function reads(row, softmax) {
    const yours = row.gradients.negatives[0], bySoftmax = softmax.gradients.negatives[0];
    const lines = [
      `Softmax with the same τ: ${shown(softmax.loss, 4)}.`,
    ];
    if (state.prior > 0) {
      const floor = state.min_margin === null
        ? `the floor leaves ${percent(state.floor)}` : "the absolute floor stops it";
      lines.push(row.binds
        ? `The correction would take ${row.taken > 1 ? "more than the whole" : percent(row.taken)} of the negative mass: ${floor}.`
        : `The correction takes ${percent(row.taken)} of the negative mass.`);
    }
    if (state.confidence_temperature !== null) lines.push(`Confidence c: ${shown(row.confidence)}.`);
    lines.push(`Gradient of the positive: ${shown(row.gradients.pos)}; with the softmax ${shown(softmax.gradients.pos)}.`);
    lines.push(`Your negative: weight ${shown(row.weights[0])}, ${percent(row.shares[0])} of the sum, gradient ${shown(yours)}; `
      + `with the softmax ${shown(bySoftmax)}.`);
    return lines;
  }

  function draw() {
    const scores = scoresOf(state);
    const row = CwRow.row(scores, lossOf(state));
    const softmax = CwRow.row(scores, softmaxOf(state));
    drawGradients(row, softmax, scores);
    drawLosses(row, softmax);
    loss.textContent = shown(row.loss, 4);
    const lines = reads(row, softmax);
    reading.replaceChildren(...lines.map((line) => element("p", {}, line)));
    reading.classList.toggle("binds", row.binds && state.prior > 0);
    gradients.svg.setAttribute("aria-label", `Gradient of each negative against its margin. ${lines[lines.length - 1]}`);
    losses.svg.setAttribute("aria-label",
      `Loss of the row against the score of the positive. At ${shown(state.pos)} it is ${loss.textContent}.`);
    code.textContent = pythonCall(state, scores);
    table.replaceChildren(...scores.negatives.map((s, j) => element("tr", {},
      element("th", { scope: "row" }, j === 0 ? "yours" : String(j)),
      ...[s - scores.pos, row.weights[j], row.shares[j], row.gradients.negatives[j], softmax.gradients.negatives[j]]
        .map((value) => element("td", {}, shown(value))))));
    clearTimeout(announced.later);
    announced.later = setTimeout(() => { announced.textContent = `Loss ${loss.textContent}. ${lines.join(" ")}`; }, 600);
  }

  function remember() {
    const start = first();
    const changed = Object.entries(state).filter(([name, value]) => value !== start[name]);
    const query = changed.map(([name, value]) => `${name}=${value === null ? "" : value}`).join("&");
    try {
      history.replaceState(null, "", location.pathname + (query ? `?${query}` : "") + location.hash);
    } catch {
      // A browser may refuse; then the address does not hold the settings.
    }
  }

  // Takes the settings in the address, as far as they make sense.
  function recall() {
    for (const [name, text] of new URLSearchParams(location.search)) {
      const c = byName[name];
      if (!c) continue;
      if (c.kind === "flag") {
        if (text === "true" || text === "false") state[name] = text === "true";
      } else if (c.kind === "choice") {
        if (c.choices.includes(text)) state[name] = text;
      } else if (text === "") {
        if (c.optional) state[name] = null;
      } else if (Number.isFinite(Number(text))) {
        const value = Math.min(c.high, Math.max(c.low, Number(text)));
        state[name] = c.whole || c.step === 1 ? Math.round(value) : value;
      }
    }
  }

  const same = (a, b) => Object.keys(a).every((name) => a[name] === b[name]);
  const withPreset = (key) => ({
    ...CwRow.DEFAULTS, extras: first().extras, ...PRESETS[key].loss, ...PRESETS[key].row,
  });

  function set(values) {
    Object.assign(state, values);
    const now = Object.keys(PRESETS).find((key) => same(withPreset(key), state));
    preset.value = now ?? "";
    for (const show of Object.values(inputs)) show();
    draw();
    clearTimeout(set.later);
    set.later = setTimeout(remember, 300);
  }

  function build(root) {
    preset.append(element("option", { value: "", disabled: true }, "your own settings"),
      ...Object.entries(PRESETS).map(([value, { label }]) => element("option", { value }, label)));
    preset.addEventListener("change", () => set(withPreset(preset.value)));
    const reset = element("button", { type: "button", class: "btn btn-sm btn-outline-primary" }, "Reset");
    reset.addEventListener("click", () => set(first()));

    const groups = [];
    for (const c of CONTROLS) {
      if (c.group) groups.push([c.group, []]);
      groups[groups.length - 1][1].push(control(c));
    }
    const [ofLoss, ofRow, more] = groups;
    const controls = element("form", { class: "controls", "aria-label": "Settings" },
      element("fieldset", {}, element("legend", {}, ofLoss[0]),
        element("div", { class: "control" }, element("label", { for: "playground-preset" }, "Start from"),
          element("div", { class: "start" }, preset, reset)),
        ...ofLoss[1]),
      element("fieldset", {}, element("legend", {}, ofRow[0]), ...ofRow[1]),
      element("details", {}, element("summary", {}, more[0]), element("fieldset", {}, ...more[1])));
    controls.addEventListener("submit", (event) => event.preventDefault());

    const key = (cls, text) => element("span", { class: `key ${cls}` }, text);
    const legend = () => element("div", { class: "legend", "aria-hidden": "true" },
      key("cw", "this loss"), key("softmax", "softmax, same τ"));
    const gradientLegend = legend();
    gradientLegend.append(key("yours", "your negative"));
    const lossLegend = legend();
    lossLegend.append(key("bound", "the floor binds"));
    const plots = element("div", { class: "plots" },
      element("div", { class: "first" },
        element("div", { class: "loss" }, element("span", { id: "playground-loss-label" }, "Loss of the row"), loss),
        element("h3", {}, "Gradient of each negative"), gradientLegend,
        element("div", { class: "plot drag" }, gradients.svg)),
      reading, announced,
      element("div", { class: "second" }, element("h3", {}, "Loss against the positive's score"), lossLegend,
        element("div", { class: "plot" }, losses.svg)));
    const heads = ["negative", "margin", "weight ω", "share", "gradient", "softmax"];
    const numbers = element("details", { class: "numbers" }, element("summary", {}, "All negatives as a table"),
      element("div", { class: "scrolled", tabindex: "0", role: "region", "aria-label": "All negatives" },
        element("table", { class: "table" },
          element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))), table)));
    const same = element("details", { class: "same" }, element("summary", {}, "The same row in Python"), code);
    root.replaceChildren(element("div", { class: "both" }, plots, controls), same, numbers);

    // Dragging in the plot moves your negative. Up and down still scrolls the page.
    const move = (event) => {
      const c = byName.margin;
      const d = gradients.xAt(event.clientX - gradients.svg.getBoundingClientRect().left);
      set({ margin: valueAt(c, positionOf(c, d)) });
    };
    gradients.svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      gradients.svg.setPointerCapture(event.pointerId);
      move(event);
      event.preventDefault();
    });
    gradients.svg.addEventListener("pointermove", (event) => {
      if (gradients.svg.hasPointerCapture(event.pointerId)) move(event);
    });
    new ResizeObserver(() => {
      const header = document.querySelector(".bd-header")?.offsetHeight ?? 0;
      root.style.setProperty("--header", `${header}px`);
      draw();
    }).observe(root);
  }

  function begin() {
    const root = document.getElementById("cw-playground");
    if (!root) return;
    recall();
    build(root);
    set({});
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
