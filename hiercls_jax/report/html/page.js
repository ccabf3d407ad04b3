"use strict";
(() => {
  // Data: counts at every position of the slider, made by page_contents.py, which documents them.

  const data = JSON.parse(document.getElementById("data").textContent);
  const TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };
  const LEVELS = data.levels.length;
  const LEAVES = data.totals.length;
  const STEPS = data.alphas.length;
  const LARGEST = data.alphas[STEPS - 1];
  const START = 0; // where alpha is 0
  const CHOSEN = data.chosen_at;
  const RATE = data.labelled ? "error" : "changed";
  const NOUN = `${data.noun}s`;
  const wrong = unpack(data.wrong); // [level, leaf, position]
  const fixed = unpack(data.fixed); // [level, position]
  const broken = unpack(data.broken);

  function unpack({ type, bytes }) {
    return new TYPES[type](Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0)).buffer);
  }

  // For each pair of levels: errors on the one, by class of the other. Each is computed once.
  const counted = new Map();
  function countsOf(level, of) {
    const key = `${level} ${of}`;
    if (!counted.has(key)) {
      const size = of < 0 ? 1 : data.names[of].length;
      const total = new Uint32Array(size);
      const sums = new Uint32Array(size * STEPS);
      for (let leaf = 0; leaf < LEAVES; leaf++) {
        const group = of < 0 ? 0 : data.labels[of][leaf];
        total[group] += data.totals[leaf];
        const from = (level * LEAVES + leaf) * STEPS;
        for (let s = 0; s < STEPS; s++) sums[group * STEPS + s] += wrong[from + s];
      }
      counted.set(key, { total, sums });
    }
    return counted.get(key);
  }

  /** The share of a class's samples (of all samples if `of` is -1) that are wrong on a level. */
  function rate(level, position, of = -1, index = 0) {
    const { total, sums } = countsOf(level, of);
    return total[index] ? sums[index * STEPS + position] / total[index] : NaN;
  }

  // Words and elements.

  const percent = (x, digits = 2) => (Number.isNaN(x) ? "–" : `${(100 * x).toFixed(digits)} %`);
  const count = (n) => n.toLocaleString("en");
  const alphaText = (a) => a.toFixed(2);
  const className = (level, i) => data.names[level][i];
  /** A name whose line may break after an underscore, a dot, a slash or a dash. */
  function breakable(name, before = "") {
    const parts = name.split(/(?<=[._/-])/);
    return make(
      "span",
      {},
      before,
      ...parts.flatMap((text, at) => (at ? [make("wbr"), text] : [text])),
    );
  }
  const named = (level, i, before) => breakable(className(level, i), before);
  const paint = (level) => `level${level % 6}`;

  function change(difference, digits = 2) {
    const size = (100 * Math.abs(difference)).toFixed(digits);
    if (Number.isNaN(difference)) return { text: "–", kind: "" };
    if (Number(size) === 0) return { text: "±0", kind: "" };
    const kind = data.labelled ? (difference < 0 ? "better" : "worse") : "";
    return { text: `${difference < 0 ? "▼" : "▲"} ${size}`, kind };
  }

  const $ = (id) => document.getElementById(id);
  const SVG = $("svg").namespaceURI;

  /** An element with attributes (class, on…) and children; text is text, never markup. */
  function make(tag, attributes = {}, ...children) {
    return fill(document.createElement(tag), attributes, children);
  }
  function draw(tag, attributes = {}, ...children) {
    return fill(document.createElementNS(SVG, tag), attributes, children);
  }
  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }
  function part(section, selector) {
    return $(section).querySelector(selector);
  }

  /** A group of buttons, one of them pressed, behind the text `before`. */
  function choices(before, label, options, chosen, choose) {
    const buttons = options.map(([value, text]) =>
      make(
        "button",
        { type: "button", "aria-pressed": value === chosen, onclick: () => press(value) },
        text,
      ),
    );
    function press(value) {
      buttons.forEach((b, i) => b.setAttribute("aria-pressed", options[i][0] === value));
      choose(value);
    }
    const group = make("span", { class: "group", role: "group", "aria-label": label }, ...buttons);
    return make("span", { class: "choice" }, before, group);
  }

  // Alpha: everything that changes with the slider registers here.

  const live = [];
  let position = CHOSEN;
  let waiting = false;
  const slider = $("alpha");

  function moveTo(s) {
    position = Math.min(STEPS - 1, Math.max(0, s));
    slider.value = position;
    if (!waiting) {
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        for (const update of live) update();
      });
    }
  }
  function onAlpha(update) {
    live.push(update);
    update();
  }
  function nearest(alpha) {
    let best = 0;
    data.alphas.forEach((a, s) => {
      if (Math.abs(a - alpha) < Math.abs(data.alphas[best] - alpha)) best = s;
    });
    return best;
  }

  function meaning(alpha) {
    if (position === CHOSEN) return data.chosen;
    if (alpha === 0) return "as predicted";
    if (alpha === 1) return "the levels agree";
    if (alpha === 2 && LEVELS === 2) return "opinions exchanged";
    return alpha < 1 ? "drawn together" : "past agreement";
  }

  function bar() {
    slider.max = STEPS - 1;
    slider.addEventListener("input", () => moveTo(Number(slider.value)));
    const chosen = data.alphas[CHOSEN];
    // Two alphas that read the same get one button.
    const others = [0, 1, LARGEST].filter((alpha) => alphaText(alpha) !== alphaText(chosen));
    const settings = [
      ...others.map((alpha) => [alpha, alphaText(alpha).replace(/\.?0+$/, "")]),
      [chosen, `${alphaText(chosen)} ★`],
    ];
    const sorted = settings.sort((a, b) => a[0] - b[0]);
    const buttons = sorted.map(([alpha, text]) =>
      make(
        "button",
        {
          type: "button",
          title: alpha === chosen ? data.chosen : null,
          "aria-label": `alpha = ${alphaText(alpha)}${alpha === chosen ? `, ${data.chosen}` : ""}`,
          onclick: () => moveTo(data.alphas.indexOf(alpha)),
        },
        text,
      ),
    );
    $("presets").append(...buttons);
    const tiles = data.levels.map((name, level) => {
      const value = make("strong", { id: `rate-${level}` });
      const delta = make("span", { class: "delta" });
      const tile = make(
        "div",
        { class: `tile ${paint(level)}` },
        make("span", { class: "name" }, `${name} ${RATE}`),
        value,
        delta,
      );
      $("tiles").append(tile);
      return { value, delta };
    });
    onAlpha(() => {
      const alpha = data.alphas[position];
      $("value").textContent = alphaText(alpha);
      $("meaning").textContent = meaning(alpha);
      buttons.forEach((b, i) => b.setAttribute("aria-pressed", sorted[i][0] === alpha));
      const spoken = [`alpha ${alphaText(alpha)}, ${meaning(alpha)}`];
      tiles.forEach(({ value, delta }, level) => {
        const now = rate(level, position);
        const by = change(now - rate(level, START));
        value.textContent = percent(now);
        delta.textContent = data.labelled ? by.text : "";
        delta.className = `delta ${by.kind}`;
        spoken.push(`${data.levels[level]} ${RATE} ${percent(now)}`);
      });
      slider.setAttribute("aria-valuetext", spoken.join("; "));
      document.body.style.setProperty("--at", `${(100 * alpha) / LARGEST}%`);
    });
  }

  // Plots: a frame of axes in SVG, drawn anew when the width changes.

  function ticks(low, high, about) {
    const rough = (high - low) / about;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-6); i * step <= high + step * 1e-6; i++)
      found.push(i * step);
    return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
  }

  /**
   * A plot in `host`. `spec` has x and y (each [low, high]), labels, height(width), and `inside`,
   * which draws the contents; it gets x() and y(), from values to pixels, and the frame.
   */
  function plot(host, spec) {
    let width = 0;
    function redraw() {
      const now = host.clientWidth;
      if (now < 40) return;
      width = now;
      const height = Math.round(spec.height(width));
      const scale = spec.scale ?? 1;
      const down = ticks(spec.y[0] * scale, spec.y[1] * scale, Math.min(5, height / 42));
      const digits = Math.max(...down.found.map((t) => t.toFixed(down.digits).length));
      const frame = { left: 25 + 7 * digits, right: width - 12, top: 12, bottom: height - 36 };
      const x = (v) =>
        frame.left + ((v - spec.x[0]) / (spec.x[1] - spec.x[0])) * (frame.right - frame.left);
      const y = (v) =>
        frame.bottom - ((v - spec.y[0]) / (spec.y[1] - spec.y[0])) * (frame.bottom - frame.top);
      const svg = draw("svg", {
        viewBox: `0 0 ${width} ${height}`,
        height,
        role: "img",
        "aria-label": spec.describe,
      });
      const back = draw("g");
      for (const t of down.found) {
        const at = y(t / scale);
        svg.append(
          draw("line", { class: "grid", x1: frame.left, x2: frame.right, y1: at, y2: at }),
          draw(
            "text",
            { x: frame.left - 7, y: at + 4, "text-anchor": "end" },
            t.toFixed(down.digits),
          ),
        );
      }
      const along = ticks(spec.x[0], spec.x[1], Math.min(8, width / 70));
      for (const t of along.found) {
        svg.append(
          draw("line", {
            class: "axis",
            x1: x(t),
            x2: x(t),
            y1: frame.bottom,
            y2: frame.bottom + 4,
          }),
          draw(
            "text",
            { x: x(t), y: frame.bottom + 17, "text-anchor": "middle" },
            t.toFixed(along.digits),
          ),
        );
      }
      svg.prepend(back);
      svg.append(
        draw("line", {
          class: "axis",
          x1: frame.left,
          x2: frame.right,
          y1: frame.bottom,
          y2: frame.bottom,
        }),
        draw(
          "text",
          { x: (frame.left + frame.right) / 2, y: height - 3, "text-anchor": "middle" },
          spec.labels[0],
        ),
        draw(
          "text",
          {
            x: 11,
            y: (frame.top + frame.bottom) / 2,
            "text-anchor": "middle",
            transform: `rotate(-90 11 ${(frame.top + frame.bottom) / 2})`,
          },
          spec.labels[1],
        ),
      );
      host.querySelector("svg")?.remove();
      host.append(svg);
      spec.inside({ svg, back, x, y, frame, width, height });
    }
    new ResizeObserver(() => host.clientWidth !== width && redraw()).observe(host);
    redraw();
    return redraw;
  }

  function panel(host, level, title, host_class = "plot") {
    const area = make("div", { class: host_class });
    host.append(
      make(
        "div",
        { class: `panel ${level === null ? "" : paint(level)}` },
        make("h3", level === null ? { class: "plain" } : {}, title),
        area,
      ),
    );
    return area;
  }
  const line = (points) =>
    points.map(([a, b], i) => `${i ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");

  /** The path of a step function if it is exact, else of its values at equal distances. */
  function steps({ alphas, errors, exact }, x, y) {
    let path = `M${x(0).toFixed(1)} ${y(errors[0]).toFixed(2)}`;
    for (let i = 1; i < alphas.length; i++) {
      path += exact
        ? `H${x(alphas[i]).toFixed(1)}V${y(errors[i]).toFixed(2)}`
        : `L${x(alphas[i]).toFixed(1)} ${y(errors[i]).toFixed(2)}`;
    }
    return exact ? `${path}H${x(LARGEST).toFixed(1)}` : path;
  }

  function curves() {
    $("curves").querySelector("h2").textContent = data.labelled
      ? "Error against α"
      : "Changed predictions against α";
    part("curves", ".lead").textContent = data.labelled
      ? `Top-1 error on ${count(data.samples)} ${NOUN}, at every α. ` +
        "Drag the slider above, or click a curve."
      : `There are no labels: the share of ${count(data.samples)} ${NOUN} ` +
        "whose prediction differs from the one at α = 0.";
    const open = ({ alphas, counts, total, exact }) => ({
      alphas: unpack(alphas),
      errors: Float64Array.from(unpack(counts), (n) => n / total),
      exact,
    });
    data.levels.forEach((name, level) => {
      const test = open(data.curves[level]);
      const validation = data.validation.length ? open(data.validation[level]) : null;
      const shown = validation ? [...test.errors, ...validation.errors] : [...test.errors];
      const low = shown.reduce((a, b) => Math.min(a, b));
      const high = shown.reduce((a, b) => Math.max(a, b));
      const room = Math.max(high - low, 0.001);
      const host = panel($("curves").querySelector(".panels"), level, name, "plot picks");
      let map = null;
      let place = () => {};
      plot(host, {
        x: [0, LARGEST],
        y: [Math.max(0, low - 0.08 * room), high + 0.16 * room],
        scale: 100,
        labels: ["α", `${RATE} (%)`],
        height: (w) => Math.min(300, Math.max(200, w * 0.56)),
        describe:
          `${name} ${RATE} against alpha: ${percent(rate(level, START))} at 0, ` +
          `${percent(rate(level, CHOSEN))} at ${alphaText(data.alphas[CHOSEN])}`,
        inside: ({ svg, back, x, y, frame }) => {
          map = (px) => ((px - frame.left) / (frame.right - frame.left)) * LARGEST;
          if (data.interval) {
            const [from, to] = data.interval.map(x);
            back.append(
              draw("rect", {
                class: "band",
                x: from,
                width: Math.max(1, to - from),
                y: frame.top,
                height: frame.bottom - frame.top,
              }),
            );
          }
          if (validation)
            svg.append(draw("path", { class: "faint dashed", d: steps(validation, x, y) }));
          svg.append(draw("path", { class: "curve", d: steps(test, x, y) }));
          const chosen = data.alphas[CHOSEN];
          const at = y(rate(level, CHOSEN));
          const anchor =
            chosen > 0.75 * LARGEST ? "end" : chosen < 0.25 * LARGEST ? "start" : "middle";
          svg.append(
            draw("line", {
              class: "axis dashed",
              x1: x(chosen),
              x2: x(chosen),
              y1: frame.top + 6,
              y2: frame.bottom,
            }),
            draw("circle", { class: "mark", cx: x(chosen), cy: at, r: 5 }),
            draw(
              "text",
              { class: "strong", x: x(chosen), y: frame.top, "text-anchor": anchor },
              `★ ${alphaText(chosen)}: ${percent(rate(level, CHOSEN))}`,
            ),
          );
          const cursor = draw("line", { class: "cursor", y1: frame.top + 6, y2: frame.bottom });
          const dot = draw("circle", { class: "dot", r: 6 });
          svg.append(cursor, dot);
          place = () => {
            const px = x(data.alphas[position]);
            cursor.setAttribute("x1", px);
            cursor.setAttribute("x2", px);
            dot.setAttribute("cx", px);
            dot.setAttribute("cy", y(rate(level, position)));
          };
          place();
        },
      });
      onAlpha(() => place());
      const pick = (event) => {
        if (event.type === "pointermove" && !event.buttons) return;
        moveTo(nearest(map(event.clientX - host.getBoundingClientRect().left)));
      };
      host.addEventListener("pointerdown", pick);
      host.addEventListener("pointermove", pick);
    });
    const exact = data.curves.every((c) => c.exact);
    const key = (kind, text) =>
      make("span", { class: "key" }, make("i", { class: kind, style: "--k: currentColor" }), text);
    const note = part("curves", ".note");
    note.append(key("line", `${RATE}${exact ? ", every step of it" : ""}`));
    if (data.validation.length) note.append(key("line dashes", "where α was tuned"));
    const chosen = `★ α = ${alphaText(data.alphas[CHOSEN])}, ${data.chosen}.`;
    const band = data.interval
      ? " The band is the 95 % bootstrap interval of that choice, " +
        `${data.interval.map(alphaText).join(" to ")}.`
      : "";
    note.after(make("p", { class: "note" }, chosen + band));
  }

  // How many were fixed and broken.

  function changes() {
    const host = part("changes", ".body");
    const lead = part("changes", ".lead");
    if (!data.labelled) {
      $("changes").querySelector("h2").textContent = "How far the levels disagree";
      $("changes").style.alignSelf = "start"; // it is short
    }
    const most = fixed.reduce(
      (a, b) => Math.max(a, b),
      broken.reduce((a, b) => Math.max(a, b), 1),
    );
    const rows = !data.labelled
      ? []
      : data.levels.map((name, level) => {
          const kinds = [
            ["good", "✓", "fixed", fixed],
            ["bad", "✗", "broken", broken],
          ];
          const numbers = kinds.map(([kind, sign, word]) => {
            const number = make("strong", { id: `${word}-${level}` });
            return {
              number,
              tag: make(
                "span",
                { class: `tally ${kind}` },
                make("i", {}, sign),
                " ",
                number,
                ` ${word}`,
              ),
            };
          });
          const net = make("span", { class: "quiet" });
          const area = make("div", { class: "plot" });
          host.append(
            make(
              "div",
              { class: "change" },
              make("h3", {}, name),
              make("div", { class: "tallies" }, ...numbers.map((n) => n.tag), net),
              area,
            ),
          );
          let place = () => {};
          plot(area, {
            x: [0, LARGEST],
            y: [0, most * 1.08],
            labels: ["α", NOUN.split(" ").pop()],
            height: () => 150,
            describe: `${NOUN} fixed and broken on level ${name}, against alpha`,
            inside: ({ svg, x, y, frame }) => {
              const cursor = draw("line", { class: "cursor", y1: frame.top, y2: frame.bottom });
              svg.append(cursor);
              const dots = kinds.map(([kind, , , counts]) => {
                const path = steps(
                  {
                    alphas: data.alphas,
                    errors: counts.subarray(level * STEPS, (level + 1) * STEPS),
                    exact: true,
                  },
                  x,
                  y,
                );
                const dot = draw("circle", { class: "dot", r: 5 });
                svg.append(
                  draw(
                    "g",
                    { class: kind },
                    draw("path", { class: kind === "bad" ? "curve dashed" : "curve", d: path }),
                    dot,
                  ),
                );
                return { dot, counts };
              });
              place = () => {
                const px = x(data.alphas[position]);
                cursor.setAttribute("x1", px);
                cursor.setAttribute("x2", px);
                for (const { dot, counts } of dots) {
                  dot.setAttribute("cx", px);
                  dot.setAttribute("cy", y(counts[level * STEPS + position]));
                }
              };
              place();
            },
          });
          return { level, numbers, net, place: () => place() };
        });
    const gaps = Object.entries(data.gap).map(([pair, gap]) => {
      const number = make("strong");
      const meter = make("i");
      const tally = make(
        "div",
        { class: "tallies" },
        "probability on which they differ: ",
        number,
        make("span", { class: "quiet" }, `${percent(gap, 1)} at α = 0`),
      );
      host.append(
        make(
          "div",
          { class: "change" },
          make("h3", {}, pair.replace("/", " and ")),
          tally,
          make("div", { class: "meter" }, meter),
        ),
      );
      return { gap, number, meter };
    });
    onAlpha(() => {
      const alpha = data.alphas[position];
      lead.textContent = data.labelled
        ? `${NOUN[0].toUpperCase()}${NOUN.slice(1)} that are wrong at α = 0 and right at ` +
          `α = ${alphaText(alpha)}, and the other way round.`
        : "The part of the probability that they give to different classes.";
      for (const { level, numbers, net, place } of rows) {
        const now = [fixed, broken].map((counts) => counts[level * STEPS + position]);
        numbers.forEach(({ number }, i) => (number.textContent = count(now[i])));
        const gain = now[0] - now[1];
        net.textContent =
          gain === 0
            ? "as many right as before"
            : `${count(Math.abs(gain))} ${gain > 0 ? "more" : "fewer"} right`;
        place();
      }
      for (const { gap, number, meter } of gaps) {
        const now = Math.abs(1 - alpha) * gap;
        number.textContent = percent(now, 1);
        meter.style.width = `${100 * now}%`;
      }
    });
  }

  // P against Q of one class, in pixels.

  function scatter() {
    if (!data.scatter.length) return $("scatter").remove();
    const select = part("scatter", "select");
    const host = part("scatter", ".plot");
    const note = part("scatter", ".note");
    part("scatter", ".lead").textContent =
      `Each point is a ${data.noun}: the class's probability on its own level, P, against the ` +
      "sum over the classes below it, Q. On the diagonal the levels agree.";
    const canvas = make("canvas", { "aria-hidden": "true" });
    host.append(canvas);
    const groups = new Map();
    let most = 0;
    data.scatter.forEach((item, i) => {
      if (item.gap > data.scatter[most].gap) most = i;
      if (!groups.has(item.level))
        groups.set(
          item.level,
          LEVELS > 2 ? make("optgroup", { label: data.levels[item.level] }) : select,
        );
      groups
        .get(item.level)
        .append(make("option", { value: i }, className(item.level, item.class)));
    });
    if (LEVELS > 2) select.append(...groups.values());
    select.value = most;
    let item = null;
    let area = null;

    function points() {
      const context = canvas.getContext("2d");
      const { frame, ratio } = area;
      const side = frame.right - frame.left;
      const alpha = data.alphas[position];
      const style = getComputedStyle(document.documentElement);
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, side + 8, side + 8);
      const total = item.p.length;
      const first = total - item.members;
      context.fillStyle = style.getPropertyValue("--ghost"); // the points at alpha 0
      context.globalAlpha = 1;
      for (let i = 0; i < total; i++)
        context.fillRect(3 + (item.p[i] / 65535) * side, 3 + (1 - item.q[i] / 65535) * side, 2, 2);
      let apart = 0;
      for (let i = 0; i < total; i++) {
        if (i === 0 || i === first) {
          const own = data.labelled && i >= first;
          context.fillStyle = style.getPropertyValue(
            own ? "--good" : data.labelled ? "--other" : "--accent",
          );
          context.globalAlpha = own ? 0.75 : 0.5;
        }
        const p = ((1 - alpha) * item.p[i] + alpha * item.target[i]) / 65535;
        const q = ((1 - alpha) * item.q[i] + alpha * item.target[i]) / 65535;
        apart += Math.abs(p - q);
        context.beginPath();
        context.arc(4 + p * side, 4 + (1 - q) * side, i < first ? 1.7 : 2.4, 0, 7);
        context.fill();
      }
      const { level } = item;
      const all =
        item.seen > total
          ? `${count(total)} of the ${count(item.seen)} ${NOUN}, drawn at random,`
          : `the ${count(total)} ${NOUN}`;
      note.replaceChildren();
      const key = (kind, text) =>
        make("span", { class: "key", style: `--k: var(${kind})` }, make("i"), text);
      note.append(key("--ghost", "at α = 0"));
      if (data.labelled)
        note.append(
          key("--good", `of this class (${count(item.members)})`),
          key("--other", `of other classes (${count(first)})`),
        );
      note.append(
        `Shown: ${all} with P or Q of at least 1 %. Their mean |P − Q|: `,
        make("strong", { id: "apart" }, (total ? apart / total : 0).toFixed(3)),
        ".",
      );
      canvas.dataset.level = level;
    }

    const redraw = plot(host, {
      x: [0, 1],
      y: [0, 1],
      labels: ["P, of the class itself", "Q, of the classes below it"],
      height: (w) => w - 10, // a square inside
      describe: `P against Q of each ${data.noun}`,
      inside: ({ svg, x, y, frame }) => {
        svg.append(draw("line", { class: "axis dashed", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }));
        const side = frame.right - frame.left + 8;
        const ratio = window.devicePixelRatio || 1;
        Object.assign(canvas, { width: side * ratio, height: side * ratio });
        Object.assign(canvas.style, {
          left: `${frame.left - 4}px`,
          top: `${frame.top - 4}px`,
          width: `${side}px`,
          height: `${side}px`,
        });
        area = { frame, ratio };
        if (item) points();
      },
    });
    function choose() {
      const chosen = data.scatter[select.value];
      item = { ...chosen, p: unpack(chosen.p), q: unpack(chosen.q), target: unpack(chosen.target) };
      if (area) points();
    }
    select.addEventListener("change", choose);
    choose();
    onAlpha(() => area && points());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }

  // Errors by class, sortable.

  function classes() {
    let of = 0; // the level whose classes are the rows
    let level = 0; // the level whose errors they are
    let order = { key: "difference", up: data.labelled }; // the largest change comes first
    let rows = [];
    const COLUMNS = [
      ["name", "class"],
      ["total", NOUN.split(" ").pop()],
      ["before", "α = 0"],
      ["now", ""],
      ["difference", "change"],
    ];
    const heads = COLUMNS.map(([key, text]) => {
      const button = make(
        "button",
        {
          type: "button",
          onclick: () => sort(key, order.key === key ? !order.up : key !== "total"),
        },
        text,
      );
      return make("th", { scope: "col", class: key }, button);
    });
    const [dots, most] = [make("span"), make("span")];
    const move = make(
      "th",
      { class: "move", "aria-hidden": "true" },
      make("div", { class: "scale" }, make("span", {}, "0"), dots, most),
    );
    let high = 1; // end of the dots' scale: the largest rate of any class at any alpha
    part("classes", "thead").append(make("tr", {}, ...heads, move));
    const body = part("classes", "tbody");
    const heading = $("classes").querySelector("h2");

    function build() {
      const what = data.labelled ? "Errors" : "Changed predictions";
      heading.textContent = `${what} by ${data.levels[of]} class, in percent`;
      rows = Array.from({ length: data.sizes[of] }, (_, i) => {
        const total = countsOf(level, of).total[i];
        const cells = { before: make("td"), now: make("td"), difference: make("td") };
        const was = make("b");
        const is = make("b", { class: "now" });
        const between = make("i");
        const tr = make(
          "tr",
          {},
          make("th", { scope: "row" }, named(of, i)),
          make("td", { class: "total" }, count(total)),
          cells.before,
          cells.now,
          cells.difference,
          make(
            "td",
            { class: `move ${paint(level)}`, "aria-hidden": "true" },
            ...(total ? [make("span", { class: "dumbbell" }, between, was, is)] : []),
          ),
        );
        return { i, tr, cells, was, is, between, name: className(of, i), total };
      });
      const { total, sums } = countsOf(level, of);
      high =
        sums.reduce((best, n, at) => Math.max(best, n / (total[Math.floor(at / STEPS)] || 1)), 0) ||
        1;
      most.textContent = percent(high, 0);
      update();
      arrange();
    }
    function update() {
      const now = `α = ${alphaText(data.alphas[position])}`;
      heads[3].firstChild.textContent = now;
      dots.textContent = `○ α = 0   ● ${now}`;
      for (const row of rows) {
        row.before = rate(level, START, of, row.i);
        row.now = rate(level, position, of, row.i);
        row.difference = row.now - row.before;
        row.cells.before.textContent = percent(row.before).replace(" %", "");
        row.cells.now.textContent = percent(row.now).replace(" %", "");
        const by = change(row.difference);
        row.cells.difference.textContent = by.text;
        row.cells.difference.className = by.kind;
        if (!row.total) continue;
        const [a, b] = [row.before, row.now].map((rate) => (100 * rate) / high);
        row.was.style.left = `${a}%`;
        row.is.style.left = `${b}%`;
        row.between.style.left = `${Math.min(a, b)}%`;
        row.between.style.width = `${Math.abs(a - b)}%`;
      }
    }
    function arrange() {
      const sign = order.up ? 1 : -1;
      const compare = (a, b) => {
        const [x, y] = [a[order.key], b[order.key]];
        if (typeof x === "string") return sign * x.localeCompare(y, "en", { numeric: true });
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return sign * (x - y) || a.i - b.i;
      };
      body.replaceChildren(...[...rows].sort(compare).map((row) => row.tr));
      heads.forEach((head, i) => {
        if (COLUMNS[i][0] === order.key)
          head.setAttribute("aria-sort", order.up ? "ascending" : "descending");
        else head.removeAttribute("aria-sort");
      });
    }
    function sort(key, up) {
      order = { key, up };
      arrange();
    }
    const levels = data.levels.map((name, i) => [i, name]);
    part("classes", ".controls").append(
      choices("classes of", "the level whose classes are listed", levels, of, (value) => {
        of = value;
        build();
      }),
      choices(
        data.labelled ? "error of" : "changes of",
        "the level whose errors are listed",
        levels,
        level,
        (value) => {
          level = value;
          build();
        },
      ),
    );
    build();
    let settled = null;
    live.push(() => {
      update();
      clearTimeout(settled);
      settled = setTimeout(arrange, 300); // not while the slider moves: rows would jump about
    });
  }

  // The hierarchy, opened branch by branch.

  function tree() {
    part("tree", ".lead").textContent = data.labelled
      ? `Error at α = 0 → at the slider's α, of the ${NOUN} of each class: on its own level ` +
        `and on the level “${data.levels[LEVELS - 1]}”.`
      : `Share of changed predictions, of the ${NOUN} predicted in each class at α = 0.`;
    const levels = (own) => [...new Set(own < 0 ? data.levels.keys() : [own, LEVELS - 1])];
    const children = data.parents.map((parents, level) => {
      const found = Array.from({ length: data.sizes[level] }, () => []);
      parents.forEach((parent, child) => found[parent].push(child));
      return found;
    });

    function label(level, i) {
      const total = countsOf(0, level).total[Math.max(i, 0)];
      const figures = levels(level).map((measured) => {
        const figure = make("span", {
          class: `figure ${paint(measured)}`,
          title: `${data.levels[measured]} ${RATE}`,
        });
        return { measured, figure };
      });
      onAlpha(() => {
        for (const { measured, figure } of figures) {
          const before = rate(measured, START, level, Math.max(i, 0));
          const now = rate(measured, position, level, Math.max(i, 0));
          const by = change(now - before, 1);
          figure.replaceChildren(
            `${data.levels[measured]} `,
            make("span", { class: "number" }, percent(before, 1).replace(" %", "")),
            " → ",
            make("b", { class: `number ${by.kind}` }, percent(now, 1)),
          );
        }
      });
      const name = level < 0 ? "all" : named(level, i);
      return [
        make("span", { class: "name" }, name, make("small", {}, `${count(total)}`)),
        make("span", { class: "figures" }, ...figures.map((f) => f.figure)),
      ];
    }
    function node(level, i) {
      const below =
        level < 0
          ? Array.from({ length: data.sizes[0] }, (_, c) => c)
          : (children[level]?.[i] ?? []);
      if (!below.length) return make("div", { class: "leaf" }, ...label(level, i));
      const inner = make("div");
      const details = make("details", {}, make("summary", {}, ...label(level, i)), inner);
      const build = () =>
        inner.firstChild || inner.append(...below.map((child) => node(level + 1, child)));
      details.addEventListener("toggle", build);
      details.build = build;
      return details;
    }
    const root = node(-1, -1);
    root.build();
    root.open = true;
    part("tree", ".body").append(root);

    function openAll(details) {
      details.build();
      details.open = true;
      details.querySelectorAll(":scope > div > details").forEach(openAll);
    }
    part("tree", ".controls").append(
      make("button", { type: "button", onclick: () => openAll(root) }, "Open all"),
      make(
        "button",
        {
          type: "button",
          onclick: () => root.querySelectorAll("details").forEach((d) => (d.open = false)),
        },
        "Close all",
      ),
    );
  }

  // The gallery: samples that adaptation by the chosen alpha fixed or broke.

  function gallery() {
    if (!data.gallery?.cards.length) return $("gallery").remove();
    const chosen = data.alphas[CHOSEN];
    const FIRST = 6; // shown until a click asks for more
    const { groups } = data.gallery;
    let kind = groups.some(({ fixed }) => fixed.length) ? "fixed" : "broken";
    let level = groups.findIndex((group) => group[kind].length); // the first level with cards
    const cards = part("gallery", ".cards");
    const more = make("button", { type: "button", class: "more" });
    cards.after(more);
    $("gallery").querySelector("h2").textContent = `What α = ${alphaText(chosen)} fixed and broke`;

    function opinions(item, at) {
      const truth = data.labels[at][item.label];
      const list = (top) =>
        make(
          "ol",
          {},
          ...top.map(([i, p]) =>
            make(
              "li",
              { class: i === truth ? "true" : null, style: `--p: ${(100 * p).toFixed(1)}%` },
              named(at, i, i === truth ? "✓ " : ""),
              make("span", {}, percent(p, 0)),
            ),
          ),
        );
      const interval = item.right[at];
      const span = make("div", {
        class: "span",
        title: interval
          ? `right for alpha from ${alphaText(interval[0])} to ${alphaText(interval[1])}`
          : "never right",
      });
      if (interval) {
        const [from, to] = interval.map((a) => (100 * a) / LARGEST);
        span.append(make("i", { style: `left: ${from}%; width: ${Math.max(0.5, to - from)}%` }));
      }
      span.append(make("b"));
      return make(
        "div",
        { class: "opinions" },
        make(
          "div",
          { class: "two" },
          make(
            "div",
            {},
            make("header", {}, make("b", {}, data.levels[at]), "before"),
            list(item.before[at]),
          ),
          make("div", {}, make("header", {}, "", "after"), list(item.after[at])),
        ),
        span,
      );
    }
    function card(item) {
      const path = data.levels.map((_, at) => className(at, data.labels[at][item.label]));
      const name = item.file ?? `${data.noun} ${item.row}`;
      const what = make(
        "div",
        { class: "what" },
        make("strong", {}, path[LEVELS - 1]),
        path.slice(0, -1).join(" › "),
        make("br"),
        name,
      );
      const image =
        item.image &&
        make("img", {
          src: item.image,
          alt: `${name}: ${path[LEVELS - 1]}`,
          class: item.image.startsWith("data:image/png") ? "small" : null,
        });
      return make(
        "article",
        { class: image ? "card" : "card bare" },
        ...(image ? [image] : []),
        what,
        ...data.levels.map((_, at) => opinions(item, at)),
      );
    }
    const total = (level, kind) => (kind === "fixed" ? fixed : broken)[level * STEPS + CHOSEN];
    const tallies = [];
    function option(value, text, number) {
      const tally = make("small");
      tallies.push(() => (tally.textContent = count(number())));
      return [value, make("span", {}, `${text} `, tally)];
    }
    function show() {
      const changed = groups[level][kind].map((i) => data.gallery.cards[i]);
      const all = total(level, kind);
      tallies.forEach((tell) => tell());
      cards.replaceChildren(...changed.slice(0, FIRST).map(card));
      const rest = changed.slice(FIRST).map(card);
      more.hidden = !rest.length;
      more.textContent = `Show ${rest.length} more`;
      more.onclick = () => {
        cards.append(...rest);
        more.hidden = true;
        rest[0].tabIndex = -1;
        rest[0].focus();
      };
      let some = all ? `The 1 ${data.noun}` : `No ${data.noun}`;
      if (all > 1) some = `All ${count(all)} ${NOUN}`;
      if (all > changed.length)
        some = `${changed.length} of the ${count(all)} ${NOUN}, drawn at random,`;
      part("gallery", ".lead").textContent =
        `${some} whose ${data.levels[level]} prediction adaptation ${kind}. ` +
        `Before is α = 0, after is α = ${alphaText(chosen)}; ✓ marks the true class. ` +
        "The strip shows at which α the level is right, and where the slider is.";
    }
    part("gallery", ".controls").append(
      choices(
        "",
        "what happened",
        [
          ["fixed", "✓ fixed"],
          ["broken", "✗ broken"],
        ].map(([k, text]) => option(k, text, () => total(level, k))),
        kind,
        (value) => {
          kind = value;
          show();
        },
      ),
      choices(
        "on level",
        "the level",
        data.levels.map((name, i) => option(i, name, () => total(i, kind))),
        level,
        (value) => {
          level = value;
          show();
        },
      ),
    );
    show();
  }

  // What does not change with the slider: calibration, training, measures, the record.

  function reliability() {
    if (!data.reliability.length) return $("reliability").remove();
    const some =
      data.sampled < data.samples ? ` Of ${count(data.sampled)} ${NOUN}, drawn at random.` : "";
    part("reliability", ".lead").textContent =
      "How often predictions of a given confidence are right, before (hollow) and after " +
      `adaptation by α = ${alphaText(data.alphas[CHOSEN])} (solid). On the diagonal, confidence ` +
      `equals accuracy. A larger point stands for more ${NOUN}.${some}`;
    data.reliability.forEach(({ before, after }, level) => {
      const errors = `${percent(before.error, 1).replace(" %", "")} → ${percent(after.error, 1)}`;
      const name = `${data.levels[level]}: calibration error ${errors}`;
      const host = panel(part("reliability", ".panels"), level, name);
      plot(host, {
        x: [0, 1],
        y: [0, 1],
        labels: ["confidence", "share right"],
        height: (w) => Math.min(340, w * 0.8),
        describe: name,
        inside: ({ svg, x, y }) => {
          svg.append(draw("line", { class: "axis", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }));
          for (const [diagram, dot] of [
            [after, "dot"],
            [before, "ring"],
          ]) {
            const counts = diagram.count.filter((n) => n);
            counts.forEach((n, i) => {
              const at = { cx: x(diagram.confidence[i]), cy: y(diagram.accuracy[i]) };
              svg.append(
                draw("circle", { class: dot, ...at, r: 2 + 12 * Math.sqrt(n / data.sampled) }),
              );
            });
          }
        },
      });
    });
  }

  function training() {
    const networks = Object.entries(data.training).filter(([, records]) => records.length);
    if (!networks.length) return $("training").remove();
    const host = part("training", ".panels");
    for (const [network, records] of networks) {
      for (const [what, scale, unit] of [
        ["error", 100, "error (%)"],
        ["loss", 1, "loss (nats)"],
      ]) {
        const series = [];
        for (const split of ["train", "validation"]) {
          data.levels.forEach((name, level) => {
            const points = records
              .filter((r) => r.split === split && `${what}_${name}` in r)
              .map((r) => [r.epoch, r[`${what}_${name}`]]);
            if (points.length) series.push({ split, level, points });
          });
        }
        if (!series.length) continue;
        const values = series.flatMap((s) => s.points.map((p) => p[1]));
        const last = Math.max(...series.flatMap((s) => s.points.map((p) => p[0])));
        const area = panel(host, null, `${network}: ${what}`);
        plot(area, {
          x: [0, last],
          y: [0, values.reduce((a, b) => Math.max(a, b)) * 1.04 || 1],
          scale,
          labels: ["epoch", unit],
          height: (w) => Math.min(280, Math.max(200, w * 0.6)),
          describe: `${what} of ${network} by epoch`,
          inside: ({ svg, x, y }) => {
            for (const { split, level, points } of series) {
              const path = draw("path", {
                class: split === "train" ? "faint" : "curve",
                d: line(points.map(([a, b]) => [x(a), y(b)])),
              });
              const [[cx, cy]] = points.map(([a, b]) => [x(a), y(b)]);
              const alone =
                points.length > 1
                  ? []
                  : [
                      draw("circle", {
                        class: "dot",
                        cx,
                        cy,
                        r: 5,
                        opacity: split === "train" ? 0.5 : 1,
                      }),
                    ];
              svg.append(draw("g", { class: paint(level) }, path, ...alone));
            }
          },
        });
        const keys = series.map(({ split, level }) =>
          make(
            "span",
            { class: "key", style: `--k: var(--${paint(level)})` },
            make("i", { class: "line", style: split === "train" ? "opacity: .5" : "" }),
            `${data.levels[level]}, ${split}`,
          ),
        );
        area.parentElement.append(make("p", { class: "note" }, ...keys));
      }
    }
    if (!host.children.length) $("training").remove();
  }

  function measures() {
    if (!data.measures) return $("measures").remove();
    const { before, after } = data.measures;
    part("measures", ".lead").textContent =
      `At α = 0 and at α = ${alphaText(data.alphas[CHOSEN])}. ` +
      "Lower is better, except for the consistency rate.";
    const words = (key) =>
      key.replaceAll("_", " ").replace("top5", "top-5").replace("brier", "Brier");
    const meanings = {
      consistency_rate:
        `the share of ${NOUN} whose predictions on all levels lie on one branch ` +
        "of the hierarchy",
      mistake_severity: "how many levels up a wrong class and the true one meet, on average",
    };
    const value = (v) => (v === null ? "–" : v.toFixed(4));
    const body = make("tbody");
    for (const key of Object.keys(before)) {
      const inner = before[key] !== null && typeof before[key] === "object";
      for (const name of inner ? Object.keys(before[key]) : [null]) {
        const answers = inner ? data.names[data.levels.indexOf(key)].length : 0;
        if (name === "top5_error" && answers <= 5) continue; // always 0
        const [a, b] = [before, after].map((m) => (inner ? m[key][name] : m[key]));
        body.append(
          make(
            "tr",
            {},
            make(
              "th",
              { scope: "row" },
              inner ? `${key}: ${words(name)}` : words(key),
              make("small", { class: "quiet" }, meanings[key] ?? ""),
            ),
            make("td", {}, value(a)),
            make("td", {}, value(b)),
          ),
        );
      }
    }
    const head = make(
      "tr",
      {},
      ...["measure", "before", "after"].map((text) => make("th", { scope: "col" }, text)),
    );
    part("measures", "table").append(make("thead", {}, head), body);
  }

  function record() {
    if (!data.record) return $("record").remove();
    const show = (value) => {
      if (value === null) return "–";
      if (Array.isArray(value)) return value.map(show).join(", ");
      if (typeof value === "object") return list(value);
      return typeof value === "number" && !Number.isInteger(value)
        ? String(Number(value.toPrecision(6)))
        : String(value);
    };
    const list = (object) =>
      make(
        "dl",
        {},
        ...Object.entries(object).flatMap(([key, v]) => [
          make("dt", {}, breakable(key)),
          make("dd", {}, show(v)),
        ]),
      );
    const host = part("record", ".body");
    const { command, ...rest } = data.record;
    if (command) host.append(make("pre", { tabindex: "0" }, command));
    const plain = Object.entries(rest).filter(
      ([, v]) => v === null || typeof v !== "object" || Array.isArray(v),
    );
    if (plain.length) host.append(list(Object.fromEntries(plain)));
    for (const [key, v] of Object.entries(rest)) {
      if (v !== null && typeof v === "object" && !Array.isArray(v))
        host.append(make("details", {}, make("summary", {}, key), list(v)));
    }
  }

  // Answers that stop where sure, and the slider of their threshold.

  function answers() {
    const { answers } = data;
    if (!answers) {
      $("stop").remove();
      return $("answers").remove();
    }
    const { thresholds, examples } = answers;
    const CALIBRATED = answers.chosen_at;
    const STOPS = ["nothing", ...data.levels]; // where an answer may stop, from the root down
    const at = unpack(answers.at); // [position, stop]
    const information = unpack(answers.information);
    const errors = answers.wrong && unpack(answers.wrong);
    const input = $("threshold");
    const updates = [];
    let here = CALIBRATED ?? thresholds.indexOf(0.5);

    function stopAt(s) {
      here = Math.min(thresholds.length - 1, Math.max(0, s));
      input.value = here;
      for (const update of updates) update();
    }
    const right = (s) => 1 - errors[s] / data.samples;
    const thetaText = (t) => t.toFixed(2);

    // In the bar.
    input.max = thresholds.length - 1;
    input.addEventListener("input", () => stopAt(Number(input.value)));
    const settings = [0, 0.5, 1]
      .map((t) => [thresholds.indexOf(t), thetaText(t).replace(/\.?0+$/, "")])
      .filter(([s]) => CALIBRATED === null || Math.abs(s - CALIBRATED) > 1);
    if (CALIBRATED !== null) settings.push([CALIBRATED, `${thetaText(thresholds[CALIBRATED])} ★`]);
    settings.sort((a, b) => a[0] - b[0]);
    const buttons = settings.map(([s, text]) =>
      make(
        "button",
        {
          type: "button",
          title: s === CALIBRATED ? answers.chosen : null,
          "aria-label":
            `threshold = ${thetaText(thresholds[s])}` +
            (s === CALIBRATED ? `, ${answers.chosen}` : ""),
          onclick: () => stopAt(s),
        },
        text,
      ),
    );
    part("stop", ".presets").append(...buttons);
    const tile = (name, id) => {
      const value = make("strong", { id });
      part("stop", ".tiles").append(
        make("div", { class: "tile" }, make("span", { class: "name" }, name), value),
      );
      return value;
    };
    const rightTile = errors && tile("answers right", "answers-right");
    const saidTile = tile("of what leaves say", "answers-say");
    updates.push(() => {
      $("sure").textContent = thetaText(thresholds[here]);
      buttons.forEach((b, i) => b.setAttribute("aria-pressed", settings[i][0] === here));
      if (errors) rightTile.textContent = percent(right(here), 1);
      saidTile.textContent = percent(information[here], 0);
      input.setAttribute(
        "aria-valuetext",
        `threshold ${thetaText(thresholds[here])}` +
          (errors ? `; ${percent(right(here), 1)} of the answers right` : ""),
      );
    });

    // Where the answers stop, as one bar.
    part("answers", ".lead").textContent =
      "Each answer is the most probable leaf or, where that is less probable than θ, the nearest " +
      "class above it that is not; in the end nothing. Answers use α = 1, where the levels " +
      "agree, wherever the other slider is.";
    const pieces = STOPS.map((name, stop) => {
      const number = make("b");
      const share = make("span", { class: "quiet" });
      const bar = make("i", { class: stop ? paint(stop - 1) : "root", title: name });
      return { number, share, bar, name, stop };
    }).reverse();
    part("answers", ".stops").append(
      make("div", { class: "stack", "aria-hidden": "true" }, ...pieces.map((p) => p.bar)),
      make(
        "div",
        { class: "tallies" },
        ...pieces.map((p) =>
          make(
            "span",
            { class: `stopped ${p.stop ? paint(p.stop - 1) : "root"}`, id: `stop-${p.stop}` },
            make("i"),
            `${p.name} `,
            p.number,
            " ",
            p.share,
          ),
        ),
      ),
    );
    updates.push(() => {
      for (const { number, share, bar, stop } of pieces) {
        const n = at[here * STOPS.length + stop];
        number.textContent = count(n);
        share.textContent = percent(n / data.samples, 1);
        bar.style.width = `${(100 * n) / data.samples}%`;
      }
    });

    // Risk against coverage.
    const note = part("answers", ".note");
    if (answers.curves) {
      const [tree, flat] = answers.curves.map(({ coverage, risk, area }) => {
        const along = unpack(coverage);
        return { points: Array.from(unpack(risk), (r, i) => [along[i], r]), area };
      });
      const most = Math.max(...[...tree.points, ...flat.points].map(([, r]) => r), 0.001);
      const host = panel(part("answers", ".panels"), null, "Wrong answers against what they say");
      let place = () => {};
      plot(host, {
        x: [0, 1],
        y: [0, 1.08 * most],
        scale: 100,
        labels: ["information, as a share of what leaves say", "wrong (%)"],
        height: (w) => Math.min(300, Math.max(200, w * 0.6)),
        describe:
          `wrong answers against information; area ${tree.area.toFixed(4)}, ` +
          `of leaves or nothing ${flat.area.toFixed(4)}`,
        inside: ({ svg, x, y }) => {
          const path = ({ points }) => line(points.map(([c, r]) => [x(c), y(r)]));
          const dot = draw("circle", { class: "dot", r: 6 });
          svg.append(
            draw("path", { class: "faint dashed", d: path(flat) }),
            draw("path", { class: "curve", d: path(tree) }),
            dot,
          );
          place = () => {
            dot.setAttribute("cx", x(information[here]));
            dot.setAttribute("cy", y(errors[here] / data.samples));
          };
          place();
        },
      });
      updates.push(() => place());
      const key = (kind, text) =>
        make(
          "span",
          { class: "key", style: "--k: var(--accent)" },
          make("i", { class: kind }),
          text,
        );
      note.append(
        key("line", `classes above leaves too (area ${tree.area.toFixed(4)})`),
        key("line dashes", `leaves or nothing (${flat.area.toFixed(4)})`),
      );
    } else part("answers", ".panels").remove();
    if (CALIBRATED !== null) {
      const chosen = `★ θ = ${thresholds[CALIBRATED].toPrecision(4)}, ${answers.chosen}.`;
      note.after(make("p", { class: "note" }, chosen));
    }
    if (!note.firstChild) note.remove();

    // Poor classes, which an average hides.
    if (answers.classes) {
      const { names, totals, wrong, information: says } = answers.classes;
      const [bad, said] = [unpack(wrong), unpack(says)];
      const body = make("tbody");
      const rows = names.map((name, i) => {
        const cells = { right: make("td"), said: make("td") };
        const meter = make("i");
        const tr = make(
          "tr",
          {},
          make("th", { scope: "row" }, breakable(name)),
          make("td", { class: "total" }, count(totals[i])),
          cells.right,
          make(
            "td",
            { class: "much", "aria-hidden": "true" },
            make("div", { class: "meter" }, meter),
          ),
          cells.said,
        );
        return { i, tr, cells, meter, right: 0 };
      });
      const heads = [data.levels[LEVELS - 2], NOUN.split(" ").pop(), "right", "", "say"];
      part("answers", "table").append(
        make(
          "thead",
          {},
          make("tr", {}, ...heads.map((text, i) => make("th", { class: ["", "total"][i] }, text))),
        ),
        body,
      );
      const arrange = () =>
        body.replaceChildren(...[...rows].sort((a, b) => a.right - b.right).map((row) => row.tr));
      let settled = null;
      updates.push(() => {
        for (const row of rows) {
          const cell = here * names.length + row.i;
          row.right = 1 - bad[cell] / totals[row.i];
          row.cells.right.textContent = percent(row.right, 1);
          row.cells.said.textContent = percent(said[cell], 0);
          row.meter.style.width = `${100 * row.right}%`;
        }
        clearTimeout(settled);
        settled = setTimeout(arrange, 300);
      });
      updates.push(arrange); // once, below
    } else part("answers", ".poor").remove();

    // Examples.
    part("answers", ".cards").append(
      ...examples.map((item) => {
        const name = item.file ?? `${data.noun} ${item.row}`;
        const truth = item.label === null ? null : data.labels.map((ids) => ids[item.label]);
        const steps = item.path.map((i, level) => {
          const own = truth && truth[level] === i;
          const li = make(
            "li",
            { style: `--p: ${(100 * item.p[level]).toFixed(1)}%` },
            named(level, i, own ? "✓ " : ""),
            make("span", {}, percent(item.p[level], 0)),
          );
          return { li, own };
        });
        const verdict = make("span", { class: "verdict" });
        updates.push(() => {
          const sure = item.p.filter((p) => p >= thresholds[here]).length;
          steps.forEach(({ li }, level) => {
            const stops = level === sure - 1;
            li.className = stops ? "answer" : level < sure ? "" : "unsure";
            if (stops) li.setAttribute("aria-current", "true");
            else li.removeAttribute("aria-current");
          });
          const good = sure === 0 || steps[sure - 1].own;
          verdict.textContent = sure === 0 ? "nothing" : truth ? (good ? "right" : "wrong") : "";
          verdict.className = `verdict ${sure && truth ? (good ? "better" : "worse") : "quiet"}`;
        });
        const label = truth && className(LEVELS - 1, truth[LEVELS - 1]);
        return make(
          "article",
          { class: item.image ? "card" : "card bare" },
          ...(item.image
            ? [
                make("img", {
                  src: item.image,
                  alt: label ? `${name}: ${label}` : name,
                  class: item.image.startsWith("data:image/png") ? "small" : null,
                }),
              ]
            : []),
          make(
            "div",
            { class: "what" },
            ...(label ? [make("strong", {}, label)] : []),
            `${name} `,
            verdict,
          ),
          make("div", { class: "opinions" }, make("ol", {}, ...steps.map(({ li }) => li))),
        );
      }),
    );
    stopAt(here);
    updates.splice(updates.findIndex((u) => u.name === "arrange"), answers.classes ? 1 : 0);
  }

  function decisions() {
    if (!data.decisions) return $("decisions").remove();
    const { before, after } = data.decisions;
    const meanings = {
      independent: "the most probable class of each level",
      leaf: "the most probable leaf and the classes above it",
      top_down: "the most probable child at each level",
      minimum_risk: "the node, on any level, nearest to the truth in expectation",
    };
    part("decisions", ".lead").textContent =
      "Independent answers may contradict each other; the others are one path of the tree. A " +
      "path is right if all its levels are, and an answer if it is the true class or one above it.";
    const table = part("decisions", "table");
    const head = [
      make("th", { scope: "col" }, "decision"),
      ...data.levels.map((name) =>
        make("th", { scope: "col", class: "of-level" }, breakable(name), " error"),
      ),
      ...["path", "answer", "says"].map((text) => make("th", { scope: "col" }, text)),
    ];
    function show(measured) {
      const rows = Object.entries(measured).map(([name, m]) =>
        make(
          "tr",
          {},
          make(
            "th",
            { scope: "row" },
            name.replaceAll("_", " "),
            make("small", { class: "quiet" }, meanings[name] ?? ""),
          ),
          ...data.levels.map((level) =>
            make("td", { class: "of-level" }, percent(m.error[level], 1)),
          ),
          make("td", {}, percent(m.path_accuracy, 1)),
          make("td", {}, percent(m.answer_accuracy ?? NaN, 1)),
          make("td", {}, percent(m.information ?? NaN, 0)),
        ),
      );
      table.replaceChildren(
        make("thead", {}, make("tr", {}, ...head)),
        make("tbody", {}, ...rows),
      );
    }
    const alpha = `α = ${alphaText(data.alphas[CHOSEN])}`;
    part("decisions", ".controls").append(
      choices(
        "at",
        "before or after adaptation",
        [
          ["before", "α = 0"],
          ["after", alpha],
        ],
        "after",
        (when) => show(when === "before" ? before : after),
      ),
    );
    show(after);
  }

  const tall = data.levels.map((name, level) => `${count(data.sizes[level])} ${name}`).join(", ");
  $("warnings").append(...data.warnings.map((text) => make("p", {}, `Warning: ${text}.`)));
  $("subtitle").textContent =
    `${count(data.samples)} ${NOUN}; classes: ${tall}. ` +
    "Adaptation pulls the levels' answers together: α says how far.";
  bar();
  curves();
  changes();
  scatter();
  answers();
  classes();
  tree();
  gallery();
  reliability();
  training();
  measures();
  decisions();
  record();
  moveTo(CHOSEN);
})();
