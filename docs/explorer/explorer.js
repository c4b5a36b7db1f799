/*
 * The equilibrium explorer: controls, pictures and words around ide.js. A classic script like it, so that a page opened
 * from disk can load it; it defines globalThis.ideExplorer.mount(element, options).
 *
 * Two acts, each with its own buttons to play, step and restart. In the first, spikes rain in and their averages settle
 * (Forward); in the second β comes back along the connections and meets the rates in ∇W (Backward). Neurons stand in the
 * order of a* in every picture: a place in that order is a `rank`.
 */
(function (root) {
  "use strict";

  const ide = root.ide;
  const N_INPUTS = 4;
  const WORK = 7; // milliseconds of simulation in a frame, at most
  const EVENTS = 4000; // of continuous time between two looks at the clock
  const PLOT_EVERY = 30; // milliseconds
  const NUMBERS_EVERY = 120;
  const WINDOW = 30; // steps of rain that are seen at once
  const MOST_EDGES = 1200;
  const MOST_MESSAGES = 260;
  const MOST_ITERATIONS = 60;
  const MATRIX_SECONDS = 5;

  const DEFAULTS = {
    n: 32, hears: 4, gamma: 0.7, leak: 1, vTh: 1, drive: 0.3, contrast: 0.5, T: 200, time: "discrete", delay: 1, seed: 7,
  }; // prettier-ignore

  const CONTROLS = [
    { name: "n", label: "Neurons", min: 1, max: 200, step: 1, hint: "n" },
    { name: "hears", label: "Fan-in", min: 1, max: 50, step: 1, hint: "how many others each neuron hears: non-zero weights in a row of W" },
    { name: "gamma", label: "Contraction γ", min: 0, max: 0.99, step: 0.01, hint: "γ = ‖W‖₂/V_th: W is scaled to it" },
    { name: "leak", label: "Leak λ", min: 0.5, max: 1, step: 0.01, hint: "what is left of a potential after a step" },
    { name: "vTh", label: "Threshold V<sub>th</sub>", min: 0.25, max: 3, step: 0.05, hint: "potential at which a neuron fires" },
    { name: "drive", label: "Drive", min: -0.5, max: 2, step: 0.05, hint: "b, the part of F x + b that all neurons share" },
    { name: "contrast", label: "Contrast", min: 0, max: 3, step: 0.1, hint: "size of F, the part that sets them apart" },
    { name: "T", label: "Steps T", min: 20, max: 1000, step: 10, hint: "how long the network runs" },
    { name: "delay", label: "Delay Δ", min: 0, max: 5, step: 0.1, hint: "in continuous time; in discrete time it is one step" },
  ];

  const EXPERIMENTS = [
    {
      name: "Start here",
      settings: {},
      note: "A small network with memory (λ = 1, IF). Watch the columns climb to their marks, then press <b>New network</b>: other spikes, another a*, the same story.",
    },
    {
      name: "IF: 1/t",
      settings: { n: 60, T: 1000, gamma: 0.6, seed: 3 },
      note: "Without a leak what remains in the potentials stays bounded and the average divides it by t. In Figure 3 the distance runs parallel to the dotted line: a hundred times the steps, a hundredth of the error.",
    },
    {
      name: "Leaky: the floor",
      settings: { n: 60, T: 400, leak: 0.9, gamma: 0.6, seed: 3 },
      note: "A leaky average forgets, so the last few spikes shake it for ever. The distance stops falling, below the dotted line of (FLOOR). Move λ towards 1 and see the floor sink in proportion to 1 − λ.",
    },
    {
      name: "γ near 1",
      settings: { n: 60, hears: 6, T: 1000, gamma: 0.97, drive: 0.2, seed: 5 },
      note: "Strong feedback. a* still exists, but the sum of (ERR) hangs far above the distance, and β needs many rounds before it rests. Lower γ to 0.3: both hurry home.",
    },
    {
      name: "Saturated: M = 0",
      settings: { n: 48, hears: 6, contrast: 2.6, drive: 0.4, gamma: 0.8, seed: 11 },
      note: "Many neurons are silent or fire at every step: σ is flat there, so m = 0. Grey neurons stop β, and their rows of ∇W are empty. In Figure 4 choose the very first or last neuron: nothing moves at all.",
    },
    {
      name: "Continuous time",
      settings: { time: "continuous", delay: 1, T: 200, n: 32 },
      note: "No time grid: each spike falls at its own instant, computed exactly from event to event. A rate has no upper end now, σ = ReLU. Change the delay Δ: other spikes, but the same a*.",
    },
  ];

  // ---- Small helpers -----------------------------------------------------------------------------------------------

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "html") made.innerHTML = value;
      else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children);
    return made;
  }

  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const reduced = () => root.matchMedia("(prefers-reduced-motion: reduce)").matches;

  function number(value, digits = 3) {
    if (value === null || !Number.isFinite(value)) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    const text = size < 1e-3 || size >= 1e4 ? value.toExponential(digits - 1) : value.toPrecision(digits);
    return text.replace("-", "−").replace(/e([+−-])(\d+)/, (_, sign, power) => ` · 10${superscript((sign === "+" ? "" : "−") + power)}`);
  }

  const superscript = (text) => [...text].map((c) => (c === "−" || c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[+c])).join("");

  /** Label of an equation, a link where the host says where the equations are. */
  const label = (name, base) => (base ? `<a href="${base}#${name.toLowerCase()}">(${name})</a>` : `(${name})`);

  /** The words with (STEP) and the like as links. */
  const linked = (html, base) => html.replace(/\(([A-Z]{2,}(?:-C)?)\)/g, (_, name) => label(name, base));

  /** Whether what the explorer stands on is dark, whatever theme or setting made it so. */
  function standsOnDark(host) {
    for (let node = host; node; node = node.parentElement) {
      const parts = getComputedStyle(node).backgroundColor.match(/[\d.]+/g).map(Number);
      if (parts.length === 3 || parts[3] > 0.5) return 0.3 * parts[0] + 0.6 * parts[1] + 0.1 * parts[2] < 110;
    }
    return root.matchMedia("(prefers-color-scheme: dark)").matches && getComputedStyle(document.documentElement).colorScheme.includes("dark");
  }

  /**
   * A canvas as sharp as the screen. `begin` clears it and returns the context with its size in CSS pixels. Its size, and
   * whether it is `inSight`, are told by observers (see `watch`): asking for them in each frame would cost a layout.
   */
  function surface(name, description) {
    const canvas = element("canvas", { class: `ide-canvas ide-${name}`, role: "img", "aria-label": description });
    const own = {
      canvas,
      inSight: false,
      w: 0,
      h: 0,
      describe: (text) => canvas.getAttribute("aria-label") !== text && canvas.setAttribute("aria-label", text),
      begin() {
        const scale = Math.min(root.devicePixelRatio || 1, 2);
        const { w, h } = own;
        if (canvas.width !== Math.round(w * scale) || canvas.height !== Math.round(h * scale)) {
          canvas.width = Math.round(w * scale);
          canvas.height = Math.round(h * scale);
        }
        const g = canvas.getContext("2d");
        g.setTransform(scale, 0, 0, scale, 0, 0);
        g.clearRect(0, 0, w, h);
        g.font = "12px system-ui, sans-serif";
        g.lineJoin = "round";
        return { g, w, h, scale };
      },
    };
    return own;
  }

  /** Keeps sizes and sight of canvases; calls `changed` whenever a picture has to be drawn. Returns how to end that. */
  function watch(surfaces, changed) {
    const of = new Map(surfaces.map((one) => [one.canvas, one]));
    const sizes = new ResizeObserver((entries) => {
      for (const { target } of entries) Object.assign(of.get(target), { w: target.clientWidth, h: target.clientHeight });
      changed();
    });
    const sight = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) of.get(target).inSight = isIntersecting;
      changed();
    }, { rootMargin: "80px" }); // prettier-ignore
    for (const { canvas } of surfaces) {
      sizes.observe(canvas);
      sight.observe(canvas);
    }
    return () => (sizes.disconnect(), sight.disconnect());
  }

  function line(g, points, color, { width = 1.5, dash = [], alpha = 1 } = {}) {
    g.strokeStyle = color;
    g.lineWidth = width;
    g.globalAlpha = alpha;
    g.setLineDash(dash);
    g.beginPath();
    let started = false;
    for (const [x, y] of points) {
      if (started) g.lineTo(x, y);
      else g.moveTo(x, y);
      started = true;
    }
    g.stroke();
    g.setLineDash([]);
    g.globalAlpha = 1;
  }

  function write(g, text, x, y, color, { align = "left", baseline = "alphabetic", size = 12 } = {}) {
    g.fillStyle = color;
    g.font = `${size}px system-ui, sans-serif`;
    g.textAlign = align;
    g.textBaseline = baseline;
    g.fillText(text, x, y);
  }

  /** Axes of a plot with a logarithmic abscissa from 1 to T; returns its scales. */
  function plot(g, w, h, colors, { T, low, high, log, xLabel }) {
    const box = { left: 46, right: w - 18, top: 10, bottom: h - 36 };
    const lastPower = Math.log10(Math.max(T, 2));
    const x = (t) => box.left + ((box.right - box.left) * Math.log10(Math.max(t, 1))) / lastPower;
    const part = log
      ? (v) => Math.log10(v / low) / Math.log10(high / low)
      : (v) => (v - low) / (high - low);
    const y = (v) => box.bottom - (box.bottom - box.top) * clamp(part(Math.max(v, log ? low * 1e-6 : low)), -0.02, 1.02);
    g.lineWidth = 1;
    for (let power = 0; 10 ** power <= T; power++) {
      line(g, [[x(10 ** power), box.top], [x(10 ** power), box.bottom]], colors.grid, { width: 1 });
      write(g, String(10 ** power), x(10 ** power), box.bottom + 15, colors.muted, { align: "center" });
    }
    const marks = log
      ? Array.from({ length: 12 }, (_, k) => 10 ** (Math.ceil(Math.log10(low) - 1e-9) + k)).filter((v) => v <= high * 1.0001)
      : evenMarks(high);
    for (const mark of marks) {
      line(g, [[box.left, y(mark)], [box.right, y(mark)]], colors.grid, { width: 1 });
      write(g, log ? plainPower(mark) : String(+mark.toPrecision(2)), box.left - 7, y(mark), colors.muted, { align: "right", baseline: "middle" });
    }
    write(g, xLabel, box.right, h - 4, colors.muted, { align: "right" });
    return { x, y, box };
  }

  /** Round numbers from 0 to `high`, three to six of them. */
  function evenMarks(high) {
    const power = 10 ** Math.floor(Math.log10(high / 4));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => high / candidate <= 5);
    return Array.from({ length: Math.floor(high / step + 1e-9) + 1 }, (_, k) => k * step);
  }

  const plainPower = (value) => (value >= 0.009 && value < 9999 ? String(+value.toPrecision(2)) : `10${superscript(String(Math.round(Math.log10(value))))}`);

  /** The steps whose points are worth drawing at this scale, the last one always. */
  function visibleSteps(count, x) {
    const steps = [];
    let last = -Infinity;
    for (let t = 1; t <= count; t++) {
      if (x(t) - last >= 0.7 || t === count) {
        steps.push(t);
        last = x(t);
      }
    }
    return steps;
  }

  // ---- The model: what the controls ask for ------------------------------------------------------------------------

  /** Network, equilibrium and the order of the neurons. What chance decides is kept while only factors change. */
  function makeModel(settings, kept) {
    const { seed, n, hears } = settings;
    const key = [seed, n, Math.min(hears, n)].join();
    const drawn = kept && kept.key === key ? kept.drawn : ide.draw(seed, n, hears, N_INPUTS);
    const net = ide.network(drawn, settings);
    const delay = settings.time === "continuous" ? settings.delay : null;
    const ceiling = delay === null ? 1 : Infinity;
    const star = ide.equilibrium(net, ceiling);
    const mask = ide.mask(net, star.p, ceiling);
    const order = Array.from({ length: n }, (_, i) => i).sort((i, j) => star.p[i] - star.p[j]);
    const rank = new Int32Array(n);
    order.forEach((i, place) => (rank[i] = place));
    // At the very ends of σ the mask is 1 by its definition, and the rate is at an end all the same.
    const flat = mask.map((m) => 1 - m);
    // The mean of neurons at a flat end does not enter the scale of a rate's axis.
    const most = Math.max(...star.a);
    return { key, drawn, settings, net, delay, ceiling, star, mask, flat, order, rank, most: delay === null ? 1 : Math.max(1, 1.15 * most) };
  }

  // ---- First act ---------------------------------------------------------------------------------------------------

  /** The run and its records. `advanceTo(t)` works for some milliseconds and says whether it arrived. */
  function makeRun(model) {
    const { net, delay, star, ceiling, settings } = model;
    const run = delay === null ? ide.discrete(net) : ide.continuous(net, delay);
    const bounds = ide.distance(net, settings.gamma, star.a, ceiling, delay);
    const records = { t: 0, a: [], error: [], oneStep: [], iterated: [], floor: [], spikes: [], count: 0 };
    return {
      records,
      advanceTo(t) {
        const until = performance.now() + WORK;
        while (records.t < t) {
          const found = run.advance(EVENTS);
          if (found !== null) {
            const now = bounds.add(found);
            records.t = found.t;
            records.a.push(found.a);
            records.spikes.push(found.spikes);
            records.count += found.spikes.length;
            for (const name of ["error", "oneStep", "iterated", "floor"]) records[name].push(now[name]);
          }
          if (performance.now() > until) break;
        }
        return records.t >= t;
      },
    };
  }

  function forwardAct(view) {
    let run;
    let clock = 0; // time that is shown, between two steps too
    let goal = 0; // a time to hurry to
    let T = 0; // of the present run
    let plotted = 0; // when the plots were last drawn
    const rain = surface("rain", "Spikes falling on the average rates of all neurons");
    const rates = surface("plot", "Average rates over time");
    const distance = surface("plot", "Distance from the equilibrium over time, with its bounds");

    const act = {
      canvases: { rain, rates, distance },
      playing: false,
      get done() {
        return clock >= T;
      },
      /** A new model: from the start, or where the old one was. */
      renew(keepTime) {
        const ended = T > 0 && clock >= T;
        T = view.model.settings.T;
        goal = act.rushed || (keepTime && ended) ? T : keepTime ? Math.min(clock, T) : 0;
        clock = 0;
        run = makeRun(view.model);
      },
      restart: () => act.renew(false),
      finish: () => (goal = T),
      step() {
        clock = goal = Math.min(Math.floor(clock) + 1, T);
        while (!run.advanceTo(clock)) continue;
      },
      /** Goes on by so many seconds; returns whether there is more to do. */
      tick(seconds) {
        if (run.records.t < goal || clock < goal) {
          run.advanceTo(goal);
          clock = run.records.t;
          return clock < goal || act.playing;
        }
        if (!act.playing) return false;
        // Evenly on the logarithmic axis, but never more than a step or so a frame.
        const pace = clamp(0.45 * clock, 7, 55) * view.speed;
        const wanted = Math.min(clock + pace * seconds, T);
        clock = run.advanceTo(Math.ceil(wanted)) ? wanted : Math.min(wanted, run.records.t);
        if (clock >= T) act.playing = false;
        return act.playing;
      },
      draw(now, force) {
        const { records } = run;
        const shown = Math.min(Math.floor(clock), records.t);
        const wanted = (picture) => picture.w > 0 && (force || picture.inSight);
        if (wanted(rain)) drawRain(rain, view, records, clock, shown);
        // Their lines hardly move from one frame to the next.
        if (!force && now - plotted < PLOT_EVERY) return;
        plotted = now;
        if (wanted(rates)) drawRates(rates, view, records, shown);
        if (wanted(distance)) drawDistance(distance, view, records, shown);
      },
      status: () => `t = ${Math.floor(clock)} of ${T}`,
      numbers() {
        const { records } = run;
        const { model } = view;
        const k = Math.min(Math.floor(clock), records.t) - 1;
        const at = (name) => (k < 0 ? null : records[name][k]);
        rain.describe(`${records.count} spikes of ${model.net.n} neurons falling on their average rates.`);
        distance.describe(`Distance from the equilibrium: ${number(at("error"))} at t = ${k + 1}.`);
        const silent = model.star.a.filter((a) => a === 0).length;
        const full = model.delay === null ? model.star.a.filter((a) => a === 1).length : null;
        return {
          error: number(at("error")),
          oneStep: number(at("oneStep")),
          iterated: number(at("iterated")),
          floor: model.settings.leak === 1 ? "0 (IF)" : number(at("floor")),
          silent: `${silent} of ${model.net.n}`,
          full: full === null ? "no upper end" : `${full} of ${model.net.n}`,
          ends: k >= 0 && act.done ? records.a[k] : null,
        };
      },
    };
    return act;
  }

  /** Place and width of the columns in which rain falls. */
  function columns(w, n) {
    const left = 40;
    const width = Math.min((w - left - 8) / n, 34);
    const start = left + (w - left - 8 - width * n) / 2;
    return { left, width, x: (rank) => start + width * rank };
  }

  function drawRain(target, view, records, clock, shown) {
    const { g, w, h } = target.begin();
    const { model, colors } = view;
    const { net, star, order, rank, flat, most } = model;
    const ground = Math.round(h * 0.64);
    const base = h - 22;
    const place = columns(w, net.n);
    const row = ground / WINDOW;

    // Rain: the newest above, older spikes further down and paler.
    const drop = clamp(place.width * 0.3, 1, 2.8);
    const length = clamp(row * 0.85, 3, 10);
    g.fillStyle = colors.blue;
    const first = Math.max(0, Math.floor(clock) - WINDOW - 1);
    for (let t = first; t < Math.min(Math.ceil(clock), records.t); t++) {
      for (const [i, time] of records.spikes[t]) {
        const age = clock - time;
        const y = age * row;
        if (age < 0 || y > ground - length) continue;
        g.globalAlpha = 1 - 0.72 * (y / ground);
        g.fillRect(place.x(rank[i]) + (place.width - drop) / 2, y, drop, length);
      }
    }
    g.globalAlpha = 1;

    // Gauges: a[t] as columns, a* as marks.
    const y = (rate) => base - (base - ground - 14) * clamp(rate / most, 0, 1.04);
    for (const rate of most === 1 ? [0, 0.5, 1] : evenMarks(most)) {
      const at = Math.round(y(rate)) + 0.5;
      line(g, [[place.left - 4, at], [w - 6, at]], rate === 0 ? colors.muted : colors.grid, { width: 1 });
      write(g, String(+rate.toPrecision(2)), place.left - 8, at, colors.muted, { align: "right", baseline: "middle" });
    }
    const a = shown > 0 ? records.a[shown - 1] : null;
    const gap = place.width > 5 ? Math.min(place.width * 0.14, 3) : 0;
    g.fillStyle = colors.soft;
    if (a) for (const i of order) g.fillRect(place.x(rank[i]) + gap, y(a[i]), place.width - 2 * gap, base - y(a[i]));
    g.fillStyle = colors.blue;
    if (a) for (const i of order) g.fillRect(place.x(rank[i]) + gap, y(a[i]) - 1, place.width - 2 * gap, 1.5);
    for (const i of order) {
      g.fillStyle = flat[i] ? colors.grey : colors.accent;
      g.fillRect(place.x(rank[i]) + gap / 2, y(star.a[i]) - 1.25, place.width - gap, 2.5);
    }
    write(g, "neurons, in the order of a*", w - 8, h - 5, colors.muted, { align: "right" });
    write(g, `a[t] after t = ${shown}`, place.left, h - 5, colors.muted);
  }

  function drawRates(target, view, records, shown) {
    const { g, w, h } = target.begin();
    const { model, colors } = view;
    const { star, most, settings, flat } = model;
    const onSlope = model.order.filter((i) => !flat[i]);
    const order = onSlope.length ? onSlope : model.order;
    const { x, y, box } = plot(g, w, h, colors, { T: settings.T, low: 0, high: most, log: false, xLabel: "time t" });
    const count = Math.min(8, order.length);
    const chosen = Array.from({ length: count }, (_, k) => order[count === 1 ? 0 : Math.round((k * (order.length - 1)) / (count - 1))]);
    const steps = visibleSteps(shown, x);
    for (const i of chosen) {
      line(g, [[box.left, y(star.a[i])], [box.right, y(star.a[i])]], colors.accent, { width: 1, dash: [5, 4], alpha: 0.9 });
    }
    for (const i of chosen) line(g, steps.map((t) => [x(t), y(records.a[t - 1][i])]), colors.blue, { width: 1.4, alpha: 0.85 });
    if (shown > 0) {
      g.fillStyle = colors.blue;
      for (const i of chosen) dotAt(g, x(shown), y(records.a[shown - 1][i]), 2.4);
    }
  }

  function drawDistance(target, view, records, shown) {
    const { g, w, h } = target.begin();
    const { model, colors } = view;
    const { settings, star } = model;
    const size = ide.norm(star.a) || 1;
    const leaky = settings.leak < 1;
    const reached = records.error.slice(0, shown).filter((value) => value > 0);
    const least = Math.min(leaky ? size / 20 : size / settings.T, ...reached);
    const most = Math.max(size, ...records.oneStep.slice(0, 3));
    const low = 10 ** Math.floor(Math.log10(Math.max(least, size / 1e4, 1e-6)) + 0.15);
    const high = 10 ** Math.ceil(Math.log10(most * 1.2));
    const { x, y, box } = plot(g, w, h, colors, { T: settings.T, low, high, log: true, xLabel: "time t" });
    g.save();
    g.beginPath();
    g.rect(box.left - 2, box.top - 4, box.right - box.left + 8, box.bottom - box.top + 8);
    g.clip();
    const steps = visibleSteps(shown, x);
    const curve = (name) => steps.filter((t) => Number.isFinite(records[name][t - 1])).map((t) => [x(t), y(records[name][t - 1])]);
    if (!leaky) line(g, [[x(1), y(size)], [x(settings.T), y(size / settings.T)]], colors.muted, { width: 1.2, dash: [1.5, 4] });
    else if (shown > 0) {
      const floor = y(records.floor[shown - 1]);
      line(g, [[box.left, floor], [box.right, floor]], colors.muted, { width: 1.5, dash: [1.5, 4] });
    }
    if (model.delay === null) line(g, curve("iterated"), colors.accent, { width: 1.2, dash: [6, 4] });
    line(g, curve("oneStep"), colors.accent, { width: 1.3 });
    line(g, curve("error"), colors.blue, { width: 2.2 });
    if (shown > 0) {
      g.fillStyle = colors.blue;
      dotAt(g, x(shown), y(records.error[shown - 1]), 3.2);
    }
    g.restore();
  }

  function dotAt(g, x, y, radius) {
    g.beginPath();
    g.arc(x, y, radius, 0, 2 * Math.PI);
    g.fill();
  }

  // ---- Second act --------------------------------------------------------------------------------------------------

  /** All of (BETA) and (HEBB) for L = the rate of one neuron, with every iterate on the way. */
  function makeGradient(model, target) {
    const { net, mask, star, settings } = model;
    const g = new Float64Array(net.n);
    g[target] = 1;
    const beta = ide.beta(net, mask, g);
    const iterates = [g];
    const errors = [ide.norm(ide.minus(g, beta))];
    const certificates = [];
    const waves = [g]; // what each round newly brings, (JᵀM)^k g
    while (iterates.length <= MOST_ITERATIONS) {
      const k = iterates.length - 1;
      const next = ide.betaStep(net, mask, iterates[k], g);
      waves.push(ide.minus(next, iterates[k]));
      certificates.push(ide.norm(waves[k + 1]) / (1 - settings.gamma));
      iterates.push(next);
      errors.push(ide.norm(ide.minus(next, beta)));
      if (ide.norm(waves[k + 1]) < 2e-3) break;
    }
    return { g, target, beta, iterates, errors, certificates, waves, matrix: ide.hebb(net, mask, beta, star.a) };
  }

  /** What runs back along each connection in round k, the strongest first: W_ij m_i wave_i/V_th, from i to j. */
  function messages(model, wave) {
    const { net, mask } = model;
    const found = [];
    for (let i = 0; i < net.n; i++) {
      if (!mask[i] || wave[i] === 0) continue;
      for (let j = 0; j < net.n; j++) {
        const value = (net.W[i * net.n + j] * wave[i]) / net.vTh;
        if (Math.abs(value) > 1e-4) found.push({ i, j, value });
      }
    }
    return found.sort((one, other) => Math.abs(other.value) - Math.abs(one.value)).slice(0, MOST_MESSAGES);
  }

  function backwardAct(view) {
    let gradient;
    let k = 0; // finished rounds of (BETA)
    let part = 0; // of the present one
    let cells = 0; // of ∇W that are lit
    let sent = { k: -1 };
    let edges = null; // picture of the connections
    let picture = null; // of ∇W
    const ring = surface("ring", "Connections between the neurons, and β going back along them");
    const rounds = surface("rounds", "Distance of β from its limit, round by round");
    const matrix = surface("matrix", "The gradient of all weights; arrow keys choose a cell");
    matrix.canvas.setAttribute("tabindex", "0");
    matrix.canvas.setAttribute("role", "application");

    const last = () => gradient.iterates.length - 1;
    const all = () => view.model.net.n ** 2;
    const act = {
      canvases: { ring, rounds, matrix },
      playing: false,
      chosen: null, // a cell of ∇W as ranks
      get gradient() {
        return gradient;
      },
      get done() {
        return cells >= all();
      },
      renew(keep) {
        const ended = keep && gradient && act.done;
        gradient = makeGradient(view.model, view.model.order[view.targetRank]);
        edges = picture = null;
        sent = { k: -1 };
        act.chosen = null;
        if (ended || act.rushed) act.finish();
        else if (!keep) act.restart();
        else [k, cells] = [Math.min(k, last()), k < last() ? 0 : Math.min(cells, all())];
      },
      repaint: () => (edges = picture = null),
      restart: () => ([k, part, cells] = [0, 0, 0]),
      finish: () => ([k, part, cells] = [last(), 0, all()]),
      step() {
        part = 0;
        if (k < last()) k += 1;
        else cells = Math.min(all(), (Math.floor(cells / view.model.net.n) + 1) * view.model.net.n);
      },
      tick(seconds) {
        if (!act.playing) return false;
        if (k < last()) {
          part += seconds * view.speed * (0.75 + 0.12 * k);
          if (part >= 1) [k, part] = [k + 1, 0];
        } else {
          cells = Math.min(all(), cells + (seconds * view.speed * all()) / MATRIX_SECONDS);
          if (act.done) act.playing = false;
        }
        return act.playing;
      },
      draw(now, force) {
        const wanted = (picture) => picture.w > 0 && (force || picture.inSight);
        if (sent.k !== k) sent = { k, list: k < last() ? messages(view.model, gradient.waves[k]) : [] };
        if (wanted(ring)) edges = drawRing(ring, view, gradient, { k, part, sent: sent.list, edges });
        if (wanted(rounds)) drawRounds(rounds, view, gradient, k);
        if (wanted(matrix)) picture = drawMatrix(matrix, view, gradient, { k, cells: k < last() ? 0 : Math.floor(cells), chosen: act.chosen, picture });
      },
      status() {
        if (k < last()) return `round ${k} of ${last()}: β arrives`;
        return act.done ? "∇W is complete" : cells > 0 ? `∇W: row ${Math.min(view.model.net.n, 1 + Math.floor(cells / view.model.net.n))}` : "β has arrived";
      },
      numbers() {
        ring.describe(`β after ${k} rounds, ${number(gradient.errors[k])} from its limit.`);
        const certificate = gradient.certificates[Math.min(k, gradient.certificates.length - 1)];
        return { betaError: number(gradient.errors[k]), certificate: number(certificate) };
      },
    };
    return act;
  }

  const ringPlaces = (w, h, n) => {
    const radius = n === 1 ? 0 : Math.min(w, h) / 2 - 30;
    const node = n === 1 ? 11 : clamp((Math.PI * radius * 0.62) / n, 1.6, 11);
    return { radius, node, at: (rank) => [w / 2 + radius * Math.sin((2 * Math.PI * (rank + 0.5)) / n), h / 2 - radius * Math.cos((2 * Math.PI * (rank + 0.5)) / n)] };
  };

  /** A connection is bent towards the middle; a neuron's own is a loop outside the ring. */
  function bend([ax, ay], [bx, by], w, h) {
    if (ax === bx && ay === by) {
      const far = Math.hypot(ax - w / 2, ay - h / 2);
      const away = far > 0 ? [ax - w / 2, ay - h / 2].map((side) => (22 * side) / far) : [0, -60];
      return [ax + away[0] - away[1], ay + away[1] + away[0], ax + away[0] + away[1], ay + away[1] - away[0]];
    }
    const middle = [(ax + bx) / 2, (ay + by) / 2];
    const control = [middle[0] + (w / 2 - middle[0]) * 0.55, middle[1] + (h / 2 - middle[1]) * 0.55];
    return [...control, ...control];
  }

  function along([ax, ay], [bx, by], [cx, cy, dx, dy], share) {
    const [p, q] = [1 - share, share];
    const weights = [p * p * p, 3 * p * p * q, 3 * p * q * q, q * q * q];
    return [
      weights[0] * ax + weights[1] * cx + weights[2] * dx + weights[3] * bx,
      weights[0] * ay + weights[1] * cy + weights[2] * dy + weights[3] * by,
    ];
  }

  function stroke(g, from, to, control) {
    g.beginPath();
    g.moveTo(...from);
    g.bezierCurveTo(...control, ...to);
    g.stroke();
  }

  /** All connections, once: they do not move. */
  function paintEdges(view, w, h, scale) {
    const { net, rank } = view.model;
    const canvas = element("canvas");
    canvas.width = Math.round(w * scale);
    canvas.height = Math.round(h * scale);
    const g = canvas.getContext("2d");
    g.scale(scale, scale);
    const place = ringPlaces(w, h, net.n);
    const found = [];
    net.W.forEach((weight, at) => weight !== 0 && found.push({ weight, i: Math.floor(at / net.n), j: at % net.n }));
    found.sort((one, other) => Math.abs(other.weight) - Math.abs(one.weight)).splice(MOST_EDGES);
    const most = found.length ? Math.abs(found[0].weight) : 1;
    const crowd = Math.min(1, 130 / Math.max(found.length, 1));
    g.strokeStyle = view.colors.muted;
    for (const { weight, i, j } of found.reverse()) {
      const [from, to] = [place.at(rank[i]), place.at(rank[j])];
      g.lineWidth = 0.5 + 0.9 * (Math.abs(weight) / most);
      g.globalAlpha = (0.08 + 0.24 * (Math.abs(weight) / most)) * (0.25 + 0.75 * crowd);
      stroke(g, from, to, bend(from, to, w, h));
    }
    return { canvas, w, h, scale };
  }

  function drawRing(target, view, gradient, { k, part, sent, edges }) {
    const { g, w, h, scale } = target.begin();
    const { model, colors } = view;
    const { net, rank, order, mask } = model;
    const place = ringPlaces(w, h, net.n);
    if (!edges || edges.w !== w || edges.h !== h || edges.scale !== scale) edges = paintEdges(view, w, h, scale);
    g.drawImage(edges.canvas, 0, 0, w, h);

    const eased = part * part * (3 - 2 * part);
    for (const { i, j, value } of part > 0 ? sent : []) {
      const [from, to] = [place.at(rank[i]), place.at(rank[j])];
      const control = bend(from, to, w, h);
      const strength = Math.min(1, Math.abs(value) ** 0.35);
      g.strokeStyle = g.fillStyle = value > 0 ? colors.blue : colors.accent;
      g.globalAlpha = 0.55 * strength * Math.sin(Math.PI * part);
      g.lineWidth = 0.5 + 2 * strength;
      stroke(g, from, to, control);
      g.globalAlpha = Math.min(1, 0.25 + strength);
      dotAt(g, ...along(from, to, control, eased), 0.8 + 3.6 * strength);
    }
    g.globalAlpha = 1;

    const now = gradient.iterates[k];
    const coming = gradient.iterates[Math.min(k + 1, gradient.iterates.length - 1)];
    const most = Math.max(1, ...gradient.beta.map(Math.abs));
    const fade = clamp((part - 0.72) / 0.28, 0, 1);
    for (const i of order) {
      const [x, y] = place.at(rank[i]);
      const value = now[i] + fade * (coming[i] - now[i]);
      const strength = Math.sqrt(Math.abs(value) / most);
      // In a crowd, where colours are hard to see, size says it too.
      const node = Math.max(place.node, Math.min(5.5, 2.4 * place.node) * strength);
      g.fillStyle = colors.paper;
      dotAt(g, x, y, node);
      g.fillStyle = value >= 0 ? colors.blue : colors.accent;
      g.globalAlpha = strength;
      dotAt(g, x, y, node);
      g.globalAlpha = 1;
      if (!mask[i]) {
        g.fillStyle = colors.grey;
        dotAt(g, x, y, Math.max(place.node * 0.62, 1.5));
      }
      g.strokeStyle = i === gradient.target ? colors.ink : mask[i] ? colors.muted : colors.grey;
      g.lineWidth = i === gradient.target ? 2.2 : 0.8;
      g.beginPath();
      g.arc(x, y, node, 0, 2 * Math.PI);
      g.stroke();
    }
    const [x, y] = place.at(rank[gradient.target]);
    const out = [x - w / 2, y - h / 2].map((side) => side / place.radius);
    if (net.n > 1) write(g, "L", x + out[0] * (place.node + 8), y + out[1] * (place.node + 8), colors.ink, { align: "center", baseline: "middle", size: 14 });
    return edges;
  }

  function drawRounds(target, view, gradient, k) {
    const { g, w, h } = target.begin();
    const { colors } = view;
    const count = gradient.iterates.length - 1;
    const box = { left: 46, right: w - 12, top: 8, bottom: h - 22 };
    const high = Math.log10(Math.max(...gradient.certificates, ...gradient.errors, 1e-3) * 1.3);
    const low = Math.log10(Math.max(1e-6, 0.7 * Math.min(...gradient.errors.filter((e) => e > 0), 1)));
    const x = (round) => box.left + ((box.right - box.left) * round) / Math.max(count, 1);
    const y = (value) => box.bottom - ((box.bottom - box.top) * clamp(Math.log10(Math.max(value, 1e-12)) - low, 0, high - low)) / Math.max(high - low, 1e-9);
    for (let power = Math.ceil(low); power <= high; power++) {
      line(g, [[box.left, y(10 ** power)], [box.right, y(10 ** power)]], colors.grid, { width: 1 });
      write(g, plainPower(10 ** power), box.left - 7, y(10 ** power), colors.muted, { align: "right", baseline: "middle" });
    }
    const rounds = Array.from({ length: k + 1 }, (_, round) => round);
    line(g, rounds.filter((r) => gradient.certificates[r] > 0).map((r) => [x(r), y(gradient.certificates[r])]), colors.accent, { width: 1.2 });
    line(g, rounds.map((r) => [x(r), y(gradient.errors[r])]), colors.blue, { width: 1.8 });
    g.fillStyle = colors.blue;
    for (const r of rounds) dotAt(g, x(r), y(gradient.errors[r]), count > 30 ? 1.8 : 2.8);
    write(g, "round k", box.right, h - 5, colors.muted, { align: "right" });
    write(g, "‖βᵏ − β*‖, and (CERT) above it", box.right, box.top + 6, colors.muted, { align: "right", baseline: "middle" });
    write(g, "0", box.left, h - 5, colors.muted, { align: "center" });
  }

  /** Where the parts of the outer product stand: β M/V_th down the left, a* along the top. */
  function matrixPlaces(w, h, n) {
    const strip = 16;
    const side = Math.min(w, h) - strip - 12;
    const left = Math.round((w - side - strip - 6) / 2) + strip + 6;
    return { strip, side, left, top: strip + 6, cell: side / n };
  }

  function paintMatrix(view, gradient) {
    const { net, order } = view.model;
    const { n } = net;
    const canvas = element("canvas");
    canvas.width = canvas.height = n;
    const g = canvas.getContext("2d");
    const image = g.createImageData(n, n);
    const most = Math.max(...gradient.matrix.W.map(Math.abs)) || 1;
    order.forEach((i, row) =>
      order.forEach((j, column) => {
        const value = gradient.matrix.W[i * n + j] / most;
        image.data.set(mixed(view.rgb, value), 4 * (row * n + column));
      }),
    );
    g.putImageData(image, 0, 0);
    return { canvas };
  }

  /** A value from −1 to 1 as a colour between the two of sign, paper for 0. */
  function mixed({ paper, blue, accent }, value) {
    const end = value >= 0 ? blue : accent;
    const share = Math.abs(value) ** 0.5;
    return [0, 1, 2].map((c) => paper[c] + share * (end[c] - paper[c])).concat(255);
  }

  function drawMatrix(target, view, gradient, { k, cells, chosen, picture }) {
    const { g, w, h } = target.begin();
    const { model, colors } = view;
    const { net, order, star, mask } = model;
    const { n } = net;
    const place = matrixPlaces(w, h, n);
    if (!picture) picture = paintMatrix(view, gradient);
    const rgb = (value) => `rgb(${mixed(view.rgb, value).slice(0, 3).map(Math.round).join()})`;
    const row = Math.floor(cells / n);
    const column = cells % n;
    g.fillStyle = colors.faint;
    g.fillRect(place.left, place.top, place.side, place.side);
    g.imageSmoothingEnabled = false;
    if (row > 0) g.drawImage(picture.canvas, 0, 0, n, row, place.left, place.top, place.side, row * place.cell);
    if (row < n && column > 0) {
      g.drawImage(picture.canvas, 0, row, column, 1, place.left, place.top + row * place.cell, column * place.cell, place.cell);
    }
    const most = Math.max(...gradient.matrix.b.map(Math.abs)) || 1;
    const rate = Math.max(...star.a) || 1;
    order.forEach((i, at) => {
      g.fillStyle = rgb(clamp((mask[i] * gradient.iterates[k][i]) / net.vTh / most, -1, 1));
      g.fillRect(place.left - place.strip - 4, place.top + at * place.cell, place.strip, Math.max(place.cell - 0.5, 0.6));
      g.fillStyle = rgb(star.a[i] / rate);
      g.fillRect(place.left + at * place.cell, place.top - place.strip - 4, Math.max(place.cell - 0.5, 0.6), place.strip);
    });
    g.strokeStyle = colors.muted;
    g.lineWidth = 1;
    g.globalAlpha = 0.5;
    g.strokeRect(place.left + 0.5, place.top + 0.5, place.side - 1, place.side - 1);
    g.strokeRect(place.left - place.strip - 3.5, place.top + 0.5, place.strip - 1, place.side - 1);
    g.strokeRect(place.left + 0.5, place.top - place.strip - 3.5, place.side - 1, place.strip - 1);
    g.globalAlpha = 1;
    // The two numbers that meet in the cell that is lit, or chosen.
    const lit = chosen || (cells > 0 && cells < n * n ? { row, column } : null);
    if (lit) {
      const size = Math.max(place.cell, 3);
      g.strokeStyle = colors.ink;
      g.lineWidth = 1.8;
      g.strokeRect(place.left - place.strip - 4, place.top + lit.row * place.cell, place.strip, size);
      g.strokeRect(place.left + lit.column * place.cell, place.top - place.strip - 4, size, place.strip);
      if (chosen) g.strokeRect(place.left + lit.column * place.cell, place.top + lit.row * place.cell, size, size);
    }
    return picture;
  }

  // ---- The page around them ----------------------------------------------------------------------------------------

  const COLORS = ["ink", "muted", "grid", "paper", "blue", "soft", "accent", "grey", "faint"];

  function readColors(host) {
    const style = getComputedStyle(host);
    const colors = Object.fromEntries(COLORS.map((name) => [name, style.getPropertyValue(`--ide-${name}`).trim()]));
    const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    const rgb = Object.fromEntries(["paper", "blue", "accent"].map((name) => [name, channels(colors[name])]));
    return { colors, rgb };
  }

  /** Settings that differ from the first ones, as the end of an address. */
  function toAddress(settings) {
    const changed = Object.entries(settings).filter(([name, value]) => value !== DEFAULTS[name]);
    return new URLSearchParams(changed).toString();
  }

  /** Of what an address or a notebook gives, the settings that are any: numbers inside the controls' ranges. */
  function sensible(given) {
    const found = {};
    for (const [name, value] of Object.entries(given)) {
      const control = CONTROLS.find((one) => one.name === name);
      if (control && value !== "" && Number.isFinite(+value)) {
        const inside = clamp(+value, control.min, control.max);
        found[name] = control.step >= 1 ? Math.round(inside) : inside;
      }
      if (name === "seed" && +value >= 0 && +value < 2 ** 32) found.seed = Math.floor(+value);
      if (name === "time" && ["discrete", "continuous"].includes(value)) found.time = value;
    }
    return found;
  }

  const fromAddress = (hash) => sensible(Object.fromEntries(new URLSearchParams(hash.slice(1))));

  function makeControl(control, value, change) {
    const id = `ide-${control.name}-${Math.random().toString(36).slice(2, 8)}`;
    const shown = element("output", { for: id });
    const input = element("input", { type: "range", id, min: control.min, max: control.max, step: control.step });
    const said = () => {
      const decimals = String(control.step).includes(".") ? String(control.step).split(".")[1].length : 0;
      shown.textContent = (control.say && control.say(+input.value)) || (+input.value).toFixed(decimals).replace("-", "−");
      input.setAttribute("aria-valuetext", shown.textContent);
    };
    input.value = value;
    said();
    input.addEventListener("input", () => (said(), change(+input.value)));
    const row = element("div", { class: "ide-control" }, element("label", { for: id, title: control.hint, html: control.label }), shown, input);
    return { row, input, set: (next) => ((input.value = next), said()) };
  }

  function makeTransport(name, view, act) {
    const play = element("button", { type: "button", class: "ide-play" });
    const step = element("button", { type: "button" }, "Step");
    const again = element("button", { type: "button" }, "Restart");
    const status = element("span", { class: "ide-status" });
    play.addEventListener("click", () => view.toggle(act));
    step.addEventListener("click", () => ((act.playing = false), act.step(), view.redraw()));
    again.addEventListener("click", () => (act.restart(), view.redraw()));
    const row = element("div", { class: "ide-transport", role: "group", "aria-label": name }, play, step, again, status);
    return {
      row,
      update() {
        const word = act.playing ? "Pause" : act.done ? "Play again" : "Play";
        if (play.textContent !== word) play.textContent = word;
        if (status.textContent !== act.status()) status.textContent = act.status();
        step.disabled = act.done;
      },
    };
  }

  function figure(count, pictures, caption, keys = []) {
    const key = keys.length ? [element("ul", { class: "ide-key" }, ...keys.map(([kind, words]) => element("li", { class: `ide-key-${kind}` }, element("span", { html: words }))))] : [];
    const words = element("figcaption", { html: `<b>Figure ${count}.</b> ${caption}` });
    return element("figure", {}, ...pictures.map((one) => one.canvas), ...key, words);
  }

  /**
   * Shows the explorer in an element. Options: `settings` to begin with, `equations`, the address of the equation index
   * whose anchors are labels in small letters, `address`, true to read settings from the page's address and keep them
   * there, and `onchange`, called with the settings whenever a control moves.
   */
  function mount(host, options = {}) {
    const base = options.equations;
    const given = { ...sensible(options.settings || {}), ...(options.address ? fromAddress(root.location.hash) : {}) };
    const own = Object.keys(given).length > 0;
    const view = { settings: { ...DEFAULTS, ...given }, speed: 1, targetRank: 0, model: null, colors: null, rgb: null };
    const forward = forwardAct(view);
    const backward = backwardAct(view);
    const acts = [forward, backward];
    let frame = 0;
    let before = 0;
    let told = 0;
    let dirty = true;
    let stale = null; // how to make the model anew before the next picture: "keep" the time, or "restart"
    const stop = [];

    function loop(now) {
      frame = 0;
      const seconds = clamp((now - before) / 1000, 0, 0.1);
      before = now;
      if (stale) refresh();
      for (const act of acts) {
        const moved = act.moving;
        act.moving = act.tick(seconds);
        act.drawn = !(dirty || moved || act.moving);
      }
      draw(now);
      if (stale || acts.some((act) => act.moving)) request();
    }

    function request() {
      if (!frame) frame = root.requestAnimationFrame(loop);
    }

    view.redraw = () => {
      dirty = true;
      told = 0;
      if (!frame) before = performance.now();
      request();
    };
    view.toggle = (act) => {
      if (act.done && !act.playing) act.restart();
      act.playing = !act.playing;
      view.redraw();
    };

    function refresh() {
      const keep = stale === "keep";
      stale = null;
      const old = view.model;
      view.model = makeModel(view.settings, old);
      const { n } = view.settings;
      if (!keep || !old || old.net.n !== n) {
        // A neuron in the middle of those that are on σ's slope.
        const active = view.model.order.filter((i) => view.model.mask[i]);
        view.targetRank = active.length ? view.model.rank[active[Math.floor(active.length / 2)]] : 0;
      }
      target.input.max = n;
      target.set(view.targetRank + 1);
      const rushed = reduced();
      for (const act of acts) {
        act.rushed = rushed && !act.playing;
        act.renew(keep);
      }
      forward.gradientOfRun = null;
      describeCell();
    }

    function draw(now) {
      const ended = acts.every((act) => !act.moving);
      // Out of sight nothing is drawn while it moves; what stands still is complete, for printers too.
      for (const act of acts) if (!act.drawn) act.draw(now, !act.moving);
      dirty = false;
      if (!ended && now - told < NUMBERS_EVERY) return;
      told = now;
      transports.forEach((one) => one.update());
      const numbers = { ...forward.numbers(), ...backward.numbers() };
      numbers.cosine = cosineOfRun(numbers.ends);
      for (const [name, place] of Object.entries(values)) {
        if (place.textContent !== numbers[name]) place.textContent = numbers[name];
      }
    }

    /** Cosine between ∇W at a*, and at the a[T] that the spikes left: what training goes by. */
    function cosineOfRun(ends) {
      if (ends === null) return "when the run ends";
      if (forward.gradientOfRun && forward.gradientOfRun.of === backward.gradient) return forward.gradientOfRun.text;
      const { net, ceiling } = view.model;
      const { p } = ide.sweep(net, ends, ide.driveOf(net), ceiling);
      const mask = ide.mask(net, p, ceiling);
      const own = ide.hebb(net, mask, ide.beta(net, mask, backward.gradient.g), ends).W;
      const sizes = ide.norm(own) * ide.norm(backward.gradient.matrix.W);
      const text = sizes > 0 ? (ide.dot(own, backward.gradient.matrix.W) / sizes).toFixed(5) : "–";
      forward.gradientOfRun = { of: backward.gradient, text };
      return text;
    }

    function change(name, value) {
      view.settings = { ...view.settings, [name]: value };
      if (name === "time") inputs.delay.input.disabled = value !== "continuous";
      mark(null);
      stale = stale || "keep";
      view.redraw();
      tell();
    }

    function tell() {
      if (options.address) root.history.replaceState(null, "", `#${toAddress(view.settings)}`);
      if (options.onchange) options.onchange({ ...view.settings });
    }

    function set(settings, { restart = true } = {}) {
      view.settings = { ...view.settings, ...sensible(settings) };
      for (const [name, control] of Object.entries(inputs)) control.set(view.settings[name]);
      inputs.delay.input.disabled = view.settings.time !== "continuous";
      stale = restart ? "restart" : stale || "keep";
      view.redraw();
      tell();
    }

    function mark(button) {
      for (const one of buttons) one.setAttribute("aria-pressed", String(one === button));
    }

    function begin(experiment, button) {
      mark(button);
      note.innerHTML = linked(experiment.note, base);
      set({ ...DEFAULTS, ...experiment.settings });
      if (!reduced()) for (const act of acts) act.playing = true;
    }

    // The controls.
    const buttons = EXPERIMENTS.map((experiment) => {
      const button = element("button", { type: "button", "aria-pressed": "false" }, experiment.name);
      button.addEventListener("click", () => begin(experiment, button));
      return button;
    });
    const note = element("p", { class: "ide-note", "aria-live": "polite" });
    const says = {
      leak: (value) => (value === 1 ? "1 (IF)" : `${value.toFixed(2)} (LIF)`),
    };
    const inputs = {};
    for (const control of CONTROLS) {
      inputs[control.name] = makeControl({ ...control, say: says[control.name] }, view.settings[control.name], (value) => change(control.name, value));
    }
    const timeId = `ide-time-${Math.random().toString(36).slice(2, 8)}`;
    const time = element("select", { id: timeId, onchange: () => change("time", time.value) }, element("option", { value: "discrete" }, "discrete"), element("option", { value: "continuous" }, "continuous"));
    const speedId = `ide-speed-${Math.random().toString(36).slice(2, 8)}`;
    const speed = element("select", { id: speedId, onchange: () => (view.speed = +speed.value) }, element("option", { value: "0.4" }, "slow"), element("option", { value: "1", selected: true }, "normal"), element("option", { value: "3" }, "fast"));
    inputs.time = { input: time, set: (value) => (time.value = value) };
    const fresh = element("button", { type: "button", onclick: () => set({ seed: (view.settings.seed + 1) % 2 ** 32 }) }, "New network");
    const rows = CONTROLS.map((control) => inputs[control.name].row);
    rows.splice(
      8, 0,
      element("div", { class: "ide-control ide-choice" }, element("label", { for: timeId }, "Time"), time),
    ); // prettier-ignore
    rows.push(element("div", { class: "ide-control ide-choice" }, element("label", { for: speedId }, "Playback"), speed));
    const controls = element("form", { class: "ide-controls", "aria-label": "The network", onsubmit: (event) => event.preventDefault() }, ...rows, fresh);

    const target = makeControl({ name: "target", label: "L is the rate of neuron", min: 1, max: view.settings.n, step: 1, hint: "its place in the order of a*" }, 1, (value) => {
      view.targetRank = value - 1;
      backward.renew(true);
      describeCell();
      view.redraw();
    });

    // Numbers beside the pictures.
    const values = {};
    const entry = (name, words) => [element("dt", { html: linked(words, base) }), (values[name] = element("dd"))];
    const forwardNumbers = element("dl", { class: "ide-numbers" }, ...[
      ["error", "‖a[t] − a*‖"], ["oneStep", "(ERR), from t − 1 to t"], ["iterated", "its sum from t = 0"], ["floor", "(FLOOR)"],
      ["silent", "silent, a* = 0"], ["full", "at every step, a* = 1"],
    ].map(([name, words]) => element("div", {}, ...entry(name, words)))); // prettier-ignore
    const backwardNumbers = element("dl", { class: "ide-numbers" }, ...[
      ["betaError", "‖β<sup>k</sup> − β*‖"], ["certificate", "(CERT), at most"], ["cosine", "cosine of ∇W with a[T] for a*"],
    ].map(([name, words]) => element("div", {}, ...entry(name, words)))); // prettier-ignore

    // A cell of ∇W, by touch or by the arrow keys.
    const cell = element("p", { class: "ide-cell", "aria-live": "polite" });
    function describeCell() {
      if (!backward.chosen) {
        cell.textContent = "Tap a cell, or use the arrow keys on the matrix: the weight is moved, and (FP) is solved again.";
        return;
      }
      const { model } = view;
      const { row, column } = backward.chosen;
      const [i, j] = [model.order[row], model.order[column]];
      const found = backward.gradient.matrix;
      const quotient = ide.difference(model.net, backward.gradient.target, i, j, model.ceiling);
      cell.innerHTML = `Row ${row + 1}, column ${column + 1}: ${number(found.b[i])} × ${number(model.star.a[j])} = <b>${number(found.W[i * model.net.n + j], 6)}</b>; moving the weight by 10⁻⁶ either way: <b>${number(quotient, 6)}</b>`;
    }
    function choose(row, column) {
      const { n } = view.model.net;
      backward.chosen = { row: clamp(row, 0, n - 1), column: clamp(column, 0, n - 1) };
      describeCell();
      view.redraw();
    }
    const { canvas } = backward.canvases.matrix;
    canvas.addEventListener("pointerdown", (event) => {
      const place = matrixPlaces(backward.canvases.matrix.w, backward.canvases.matrix.h, view.model.net.n);
      const [row, column] = [(event.offsetY - place.top) / place.cell, (event.offsetX - place.left) / place.cell].map(Math.floor);
      if (row >= 0 && column >= 0 && row < view.model.net.n && column < view.model.net.n) choose(row, column);
    });
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      if (!moves[event.key]) return;
      event.preventDefault();
      const { row, column } = backward.chosen || { row: 0, column: 0 };
      choose(row + moves[event.key][0], column + moves[event.key][1]);
    });
    backward.canvases.ring.canvas.addEventListener("pointerdown", (event) => {
      const { w, h } = backward.canvases.ring;
      const { n } = view.model.net;
      const place = ringPlaces(w, h, n);
      const away = (rank) => Math.hypot(event.offsetX - place.at(rank)[0], event.offsetY - place.at(rank)[1]);
      const nearest = Array.from({ length: n }, (_, rank) => rank).reduce((best, rank) => (away(rank) < away(best) ? rank : best), 0);
      if (away(nearest) > Math.max(22, place.node)) return;
      target.set(nearest + 1);
      target.input.dispatchEvent(new Event("input"));
      backward.restart();
      backward.playing = !reduced();
    });

    const transports = [makeTransport("Forward", view, forward), makeTransport("Backward", view, backward)];
    const said = (html) => linked(html, base);
    const first = element("section", { class: "ide-act" },
      element("h3", {}, "Spikes rain in, and settle"),
      transports[0].row,
      figure(1, [forward.canvases.rain], said(
        "Every drop is a spike, (STEP), the newest at the top. The blue columns below are the average rates a[t] so far, (RATE). The red marks are a*, the solution of (FP), computed without a single spike: each neuron’s rate as σ of what all the others send. Grey marks are neurons at a flat end of σ. <i>Try it:</i> raise the drive until the marks on the right pile up at 1; lower it below 0, and one after the other falls silent.")),
      element("div", { class: "ide-pair" },
        figure(2, [forward.canvases.rates], said(
          "Average rates of up to eight neurons on the slope of σ, from the quietest to the busiest. One spike more or less matters a lot at first and ever less later. <i>Try it:</i> move λ below 1 and see the lines tremble for ever."),
          [["blue", "a[t], one line a neuron"], ["dashed", "a*"]]),
        figure(3, [forward.canvases.distance], said(
          "How far all rates together are from a*. The red lines are promises of (ERR): the blue one may touch them, never cross. <i>Try it:</i> γ near 1 lifts the dashed line far away: it knows the distance at t = 0 alone."),
          [["blue", "‖a[t] − a*‖"], ["accent", "(ERR), from t − 1 to t"], ["dashed", "its sum from t = 0"], ["dotted", "‖a*‖/t for IF, (FLOOR) for LIF"]].map(([kind, words]) => [kind, said(words)]))),
      forwardNumbers); // prettier-ignore
    const second = element("section", { class: "ide-act" },
      element("h3", {}, "The gradient comes back, without time"),
      element("div", { class: "ide-target" }, transports[1].row, target.row),
      element("div", { class: "ide-pair" },
        figure(4, [backward.canvases.ring, backward.canvases.rounds], said(
          "Let the loss L be the rate of one neuron. β starts there, and in each round runs along every connection against its direction, times W<sub>ij</sub>/V<sub>th</sub>: β<sup>k+1</sup> = (1/V<sub>th</sub>) Wᵀ M β<sup>k</sup> + ∂L/∂a*, (BETA). Each round brings at most γ times what the last one brought, so β comes to rest. The curve below is its distance from the limit. Grey neurons, (MASK), keep what they get. Neurons stand clockwise in the order of a*. <i>Try it:</i> touch another neuron."),
          [["blue", "β > 0: a higher rate raises L"], ["accent", "β < 0: it lowers L"], ["grey", "m = 0"]]),
        figure(5, [backward.canvases.matrix, { canvas: cell }], said(
          "∇W = (1/V<sub>th</sub>) M β* a*ᵀ, (HEBB): a row for each receiving neuron, a column for each sending one. What changes a connection is the product of two numbers that its two ends know: the strip on the left and the strip above. No spike train was stored, and nothing was run backwards in time. A loss of all rates gives a weighted sum of such pictures, for (BETA) is linear."),
          [["blue", "a larger weight, more L"], ["accent", "a larger weight, less L"]])),
      backwardNumbers); // prettier-ignore

    host.classList.add("ide-explorer");
    host.replaceChildren(
      element("div", { class: "ide-experiments", role: "group", "aria-label": "Experiments" }, ...buttons),
      note,
      element("div", { class: "ide-columns" }, controls, element("div", { class: "ide-stage" }, first, second)),
    );

    // What the host does to us: size, colours, whether we are in sight.
    const recolor = () => {
      host.classList.toggle("ide-dark", standsOnDark(host.parentElement || host));
      Object.assign(view, readColors(host));
      backward.repaint();
      view.redraw();
    };
    recolor();
    stop.push(watch(acts.flatMap((act) => Object.values(act.canvases)), view.redraw));
    const themes = new MutationObserver(recolor);
    for (const node of [document.documentElement, document.body]) themes.observe(node, { attributes: true });
    const scheme = root.matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", recolor);
    const seen = new IntersectionObserver((entries) => {
      for (const { target: section, isIntersecting } of entries) {
        if (!isIntersecting || reduced()) continue;
        // Each act begins when it first comes into sight.
        (section === first ? forward : backward).playing = true;
        seen.unobserve(section);
        view.redraw();
      }
    }, { threshold: 0.15 });
    seen.observe(first);
    seen.observe(second);
    stop.push(() => themes.disconnect(), () => seen.disconnect(), () => scheme.removeEventListener("change", recolor));

    mark(own ? null : buttons[0]);
    note.innerHTML = own ? "These settings came with the address. Each button above sets the controls and says what to look for." : linked(EXPERIMENTS[0].note, base);
    for (const [name, control] of Object.entries(inputs)) control.set(view.settings[name]);
    inputs.delay.input.disabled = view.settings.time !== "continuous";
    stale = "restart";
    view.redraw();

    return {
      get settings() {
        return { ...view.settings };
      },
      set,
      begin: (name) => buttons[EXPERIMENTS.findIndex((experiment) => experiment.name === name)].click(),
      play: () => (acts.forEach((act) => (act.playing = true)), view.redraw()),
      finish: () => (acts.forEach((act) => ((act.playing = false), act.finish())), view.redraw()),
      destroy: () => (root.cancelAnimationFrame(frame), stop.forEach((end) => end()), host.replaceChildren()),
    };
  }

  root.ideExplorer = { mount, DEFAULTS, EXPERIMENTS };
})(globalThis);
