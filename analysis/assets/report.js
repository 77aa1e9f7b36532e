"use strict";
// Tabs, and charts that are drawn when they come near the screen. Figures and plotly.js lie packed in the page.
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const live = document.getElementById("live");
  const states = new WeakMap(); // of each drawn figure: groups shown, view, place of the keyboard
  let content = null;
  root.classList.add("js");

  // ---- tabs ----
  const tabs = all("[role=tab]");
  function select(tab, focus) {
    for (const other of tabs) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      document.getElementById(other.getAttribute("aria-controls")).classList.toggle("current", chosen);
    }
    if (focus) tab.focus();
  }
  tabs.forEach((tab, at) => {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      select(tabs[(step + tabs.length) % tabs.length], true);
    });
  });
  function follow() {
    const place = location.hash && document.getElementById(location.hash.slice(1));
    const panel = place && place.closest("[role=tabpanel]");
    const tab = panel && document.getElementById(panel.getAttribute("aria-labelledby"));
    if (!tab) return;
    select(tab);
    place.scrollIntoView();
  }
  if (tabs.length) select(tabs[0]);
  addEventListener("hashchange", follow);

  // ---- from a packed figure to plotly's ----
  const literal = (name) => name.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
  const color = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  function paint(value) {
    if (value === "$diverging") return [[0, color("fall")], [0.5, color("zero")], [1, color("rise")]];
    if (value === "$rising") return [[0, color("low")], [1, color("high")]];
    return color(value.slice(1));
  }
  function resolve(value, key) {
    if (typeof value === "string") return /color/i.test(key) && value[0] === "$" ? paint(value) : value;
    if (Array.isArray(value)) return typeof value[0] === "object" ? value.map((item) => resolve(item, key)) : value;
    if (value === null || typeof value !== "object") return value;
    if (value.days) return content.days[value.days];
    return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, resolve(inner, name)]));
  }
  function axis(given, own) {
    const common = {
      gridcolor: color("grid"), linecolor: color("line"), zerolinecolor: color("line"), zeroline: false,
      tickfont: { size: 11 }, automargin: true, ...own, ...given,
    };
    if (given.type === "date") common.hoverformat = "%Y-%m-%d";
    if (given.title) common.title = { ...given.title, font: { size: 11, color: color("soft") }, standoff: 6 };
    return common;
  }
  function dress(layout, width, height, fitted) {
    const soft = color("soft");
    const made = {
      ...layout, width, height, showlegend: false, autosize: false,
      margin: { l: 52, r: 12, t: 22, b: 34, ...layout.margin },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: soft },
      hoverlabel: { bgcolor: color("paper"), bordercolor: color("line"), font: { color: color("ink"), size: 12 }, namelength: -1 },
      hovermode: layout.hovermode || "x unified",
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      xaxis: axis(layout.xaxis || {}, { nticks: width < 520 ? 5 : undefined }),
    };
    if (width < 520 && (layout.annotations || []).length === 3) {
      // Narrow: the name of the middle split stands a line higher, so that names do not meet.
      made.annotations = layout.annotations.map((note, at) => (at === 1 ? { ...note, yshift: 13 } : note));
      made.margin.t = 36;
    }
    for (const name of ["yaxis", "yaxis2"]) if (layout[name]) made[name] = axis(layout[name], { fixedrange: fitted });
    return made;
  }
  // Ranges of the vertical axes over what is visible between the ends of the horizontal one.
  function ranges(data, layout) {
    const [low, high] = layout.xaxis.range.map((end) => new Date(typeof end === "string" ? end.replace(" ", "T") + (end.length > 10 ? "Z" : "") : end).getTime());
    const found = {};
    for (const trace of data) {
      if (trace.visible === false) continue;
      const ends = (found[trace.yaxis || "y"] ||= [Infinity, -Infinity]);
      trace.y.forEach((value, at) => {
        if (value === null || trace.x[at] < low || trace.x[at] > high) return;
        ends[0] = Math.min(ends[0], value);
        ends[1] = Math.max(ends[1], value);
      });
    }
    for (const [name, ends] of Object.entries(found)) {
      const own = layout[name.replace("y", "yaxis")];
      if (!(ends[1] >= ends[0])) continue;
      let [from, to] = own.type === "log" ? ends.map(Math.log10) : ends;
      if (own.rangemode === "tozero") [from, to] = [Math.min(from, 0), Math.max(to, 0)];
      const pad = 0.04 * (to - from) || 0.05;
      own.range = [from - (from === 0 ? 0 : pad), to + (to === 0 ? 0 : pad)];
      own.autorange = false;
    }
  }

  // ---- drawing ----
  function draw(figure, width) {
    const spec = content.figures[figure.dataset.figure];
    const canvas = figure.querySelector(".canvas");
    const frame = figure.querySelector(".frame");
    const room = width || Math.max(frame.clientWidth, spec.min_width);
    if (!room) return;
    if (!states.has(figure)) prepare(figure, spec, canvas);
    const state = states.get(figure);
    const data = resolve(spec.data, "");
    const shown = spec.views.length && spec.views[state.view] && spec.views[state.view].shown;
    data.forEach((trace, at) => { trace.visible = shown ? shown.includes(at) : state.groups.get(trace.legendgroup) !== false; });
    const layout = dress(resolve(spec.layout, ""), room, spec.height, spec.fit);
    if (state.range) layout.xaxis.range = state.range.slice();
    if (spec.fit) ranges(data, layout);
    state.width = room;
    state.traces = data;
    const config = {
      displaylogo: false, displayModeBar: false, doubleClick: false, showTips: false, scrollZoom: false, responsive: false,
    };
    Plotly.react(canvas, data, layout, config);
    if (figure.dataset.drawn) return;
    figure.dataset.drawn = "yes";
    root.dataset.firstChart ||= performance.now().toFixed(0);
    canvas.on("plotly_relayout", (change) => {
      if (!spec.fit || state.busy || !("xaxis.range[0]" in change)) return;
      state.range = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
      press(figure, -1);
      again(figure);
    });
    canvas.on("plotly_doubleclick", () => { if (spec.fit) choose(figure, spec.view); });
  }
  function again(figure) {
    const state = states.get(figure);
    state.busy = true;
    draw(figure, state.printing ? state.width : 0);
    state.busy = false;
  }
  function press(figure, view) {
    all(".views button", figure).forEach((button, at) => button.setAttribute("aria-pressed", String(at === view)));
  }
  const initial = (spec, view) => (spec.views[view] && spec.views[view].layout && spec.views[view].layout["xaxis.range"]) || null;
  function choose(figure, view) {
    const state = states.get(figure);
    const spec = content.figures[figure.dataset.figure];
    state.view = view;
    state.range = initial(spec, view);
    press(figure, view);
    again(figure);
  }
  function button(label, act) {
    const made = document.createElement("button");
    made.type = "button";
    made.append(label);
    made.addEventListener("click", act);
    return made;
  }
  function swatch(trace) {
    const dashes = { dash: "6 4", dot: "2 3", dashdot: "6 3 2 3" };
    const line = trace.line || {};
    const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    picture.setAttribute("viewBox", "0 0 24 10");
    picture.setAttribute("aria-hidden", "true");
    const round = trace.mode.startsWith("markers");
    const mark = document.createElementNS(picture.namespaceURI, round ? "circle" : "path");
    const given = round
      ? { cx: 12, cy: 5, r: 4, fill: trace.marker.symbol ? "none" : "var(--high)", stroke: trace.marker.symbol ? "var(--ink)" : "none" }
      : { d: "M1 5H23", fill: "none", "stroke-width": Math.min(line.width || 1.5, 6), "stroke-dasharray": dashes[line.dash] || "none" };
    if (!round) mark.style.stroke = `var(--${line.color.slice(1)})`;
    for (const [name, value] of Object.entries(given)) mark.setAttribute(name, value);
    picture.append(mark);
    return picture;
  }
  function prepare(figure, spec, canvas) {
    const groups = new Map();
    const entries = new Map();
    for (const trace of spec.data) {
      if (!trace.legendgroup) continue;
      groups.set(trace.legendgroup, trace.visible !== false);
      entries.set(trace.legendgroup, trace);
    }
    states.set(figure, { groups, view: spec.view, range: initial(spec, spec.view), trace: -1, point: 0 });
    const legend = figure.querySelector(".legend");
    const order = [...entries].sort(([, one], [, two]) => (one.legendrank || 1000) - (two.legendrank || 1000));
    if (spec.legend && order.length > 1) {
      for (const [group, trace] of order) {
        const entry = button("", () => {
          groups.set(group, !groups.get(group));
          entry.setAttribute("aria-pressed", String(groups.get(group)));
          again(figure);
        });
        entry.setAttribute("aria-pressed", String(groups.get(group)));
        entry.append(swatch(trace), (trace.meta && trace.meta.entry) || literal(trace.name));
        legend.append(entry);
      }
    }
    const views = figure.querySelector(".views");
    spec.views.forEach((view, at) => views.append(button(view.label, () => choose(figure, at))));
    press(figure, spec.view);
    canvas.addEventListener("keydown", (event) => step(figure, spec, canvas, event));
    canvas.addEventListener("blur", () => Plotly.Fx.unhover(canvas));
  }

  // ---- points by keyboard: left and right along a line, up and down from line to line ----
  const told = (value) => (Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(4)));
  function step(figure, spec, canvas, event) {
    const state = states.get(figure);
    const rank = (at) => (state.traces[at].yaxis === "y2" ? 2000 : 0) + (state.traces[at].legendrank || 1000);
    const usable = state.traces.map((_, at) => at)
      .filter((at) => state.traces[at].visible && state.traces[at].hoverinfo !== "skip")
      .sort((one, two) => rank(one) - rank(two) || one - two);
    const keys = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", "PageUp", "PageDown"];
    if (!keys.includes(event.key) || !usable.length) return;
    event.preventDefault();
    let line = usable.indexOf(state.trace);
    const fresh = line < 0;
    if (fresh) line = 0;
    else if (event.key === "ArrowDown") line = (line + 1) % usable.length;
    else if (event.key === "ArrowUp") line = (line + usable.length - 1) % usable.length;
    const trace = state.traces[usable[line]];
    const places = trace.type === "heatmap"
      ? trace.z.flatMap((row, y) => row.map((value, x) => [value, [y, x]])).filter(([value]) => value !== null)
      : trace.y.map((value, at) => [value, at]).filter(([value]) => value !== null);
    const leap = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -Infinity, End: Infinity }[event.key] || 0;
    state.trace = usable[line];
    state.point = fresh ? 0 : Math.max(0, Math.min(places.length - 1, state.point + leap));
    const [value, at] = places[Math.min(state.point, places.length - 1)];
    const cell = Array.isArray(at);
    const target = cell ? { xval: at[1], yval: at[0] } : [{ curveNumber: state.trace, pointNumber: at }];
    Plotly.Fx.hover(canvas, target, trace.yaxis === "y2" ? "xy2" : "xy");
    const dated = (spec.layout.xaxis || {}).type === "date";
    const place = cell ? `${trace.x[at[1]]}, ${trace.y[at[0]]}` : dated ? new Date(trace.x[at]).toISOString().slice(0, 10) : trace.x[at];
    const words = cell ? trace.text[at[0]][at[1]].replace("<br>", ", ") : trace.text ? literal(trace.text[at]) : told(value);
    live.textContent = `${literal(trace.name || "")} ${place}: ${words}`;
  }

  // ---- when to draw ----
  const figures = all("figure[data-figure]");
  const near = new IntersectionObserver((found) => {
    for (const { isIntersecting, target } of found) {
      if (isIntersecting && !target.dataset.drawn) draw(target);
    }
  }, { rootMargin: "500px" });
  const sizes = new ResizeObserver((found) => {
    for (const { target } of found) {
      const figure = target.closest("figure");
      const state = states.get(figure);
      const spec = content.figures[figure.dataset.figure];
      if (state && !state.printing && target.clientWidth && Math.max(target.clientWidth, spec.min_width) !== state.width) again(figure);
    }
  });
  const redraw = () => figures.filter((figure) => figure.dataset.drawn).forEach(again);
  function decode(packed) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(packed);
    const letters = atob(packed);
    const bytes = new Uint8Array(letters.length);
    for (let at = 0; at < bytes.length; at++) bytes[at] = letters.charCodeAt(at);
    return bytes;
  }
  function unpack(id) {
    const element = document.getElementById(id);
    const bytes = decode(element.textContent);
    element.remove();
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }
  async function start() {
    const [source, text] = await Promise.all([unpack("library"), unpack("figures")]);
    content = JSON.parse(text);
    for (const steps of Object.values(content.days)) {
      let day = 0;
      steps.forEach((wide, at) => { day += wide; steps[at] = day * 864e5; });
    }
    const script = document.createElement("script");
    script.textContent = source;
    document.head.append(script);
    for (const figure of figures) {
      near.observe(figure);
      sizes.observe(figure.querySelector(".frame"));
    }
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    addEventListener("beforeprint", () => {
      root.classList.add("printing");
      all("details:not([open])").forEach((fold) => { fold.open = true; fold.dataset.folded = "yes"; });
      for (const figure of figures) {
        draw(figure, Number(figure.dataset.print));
        states.get(figure).printing = true;
      }
    });
    addEventListener("afterprint", () => {
      root.classList.remove("printing");
      all("details[data-folded]").forEach((fold) => { fold.open = false; delete fold.dataset.folded; });
      for (const figure of figures) states.get(figure).printing = false;
      redraw();
    });
  }
  document.addEventListener("DOMContentLoaded", () => {
    follow();
    start().catch((error) => {
      root.classList.remove("js");
      document.getElementById("trouble").hidden = false;
      if (typeof DecompressionStream === "function") throw error;
    });
  });
})();
