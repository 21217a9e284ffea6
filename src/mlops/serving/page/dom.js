// Nodes, and numbers as people read them. Text from data only ever becomes text nodes here, never markup.

export const find = (id) => document.getElementById(id);

/** A node; names with a dash and `role` are attributes, all others properties. Children that are strings are text. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

/** Names in data may be written from right to left: whatever stands beside them keeps its place. */
export const name = (text) => make("bdi", { dir: "auto" }, String(text));

export const button = (text, onclick, kind = "second small") =>
  make("button", { type: "button", className: kind, onclick }, text);

export function percent(share) {
  if (share > 0 && share < 0.0005) return "< 0.1%";
  if (share < 1 && share >= 0.9995) return "> 99.9%";
  return `${(100 * share).toFixed(1)}%`;
}

export const count = (number, one, many = `${one}s`) =>
  `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

export function milliseconds(time) {
  if (time >= 10000) return `${(time / 1000).toFixed(0)} s`;
  if (time >= 1000) return `${(time / 1000).toFixed(1)} s`;
  return time >= 20 ? `${time.toFixed(0)} ms` : `${time.toFixed(1)} ms`;
}

export function bytes(size) {
  if (size >= 1e6) return `${(size / 1e6).toFixed(1)} MB`;
  return size >= 1e3 ? `${Math.round(size / 1e3)} kB` : count(size, "byte");
}

/** 2026-11-26T17:57:25+00:00 in UTC as the reports write it; whatever is no such time stays as it is. */
export function moment(text) {
  const time = new Date(text);
  if (!/^\d{4}-\d\d-\d\dT/.test(text) || Number.isNaN(time.getTime())) return String(text);
  return time.toISOString().slice(0, 16).replace("T", " ");
}

/** The likeliest classes with their bars; `top` as the server tells it. */
export function bars(top) {
  const rows = top.map((choice) => {
    const bar = make("i");
    bar.style.width = `${100 * choice.probability}%`;
    const track = make("span", { className: "track", "aria-hidden": "true" }, bar);
    return make("li", {}, name(choice.class), make("b", {}, percent(choice.probability)), track);
  });
  return make("ol", { className: "bars", role: "list" }, ...rows);
}

/** A command to copy, folded away. */
export function command(summary, text) {
  const shown = make("pre", { tabIndex: 0, "aria-label": summary, role: "group" }, text);
  const copy = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Browsers give the clipboard to pages over https only; the older way works for text that is selected.
      getSelection().selectAllChildren(shown);
      document.execCommand("copy");
    }
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 2000);
  });
  const box = make("div", { className: "command" }, shown, copy);
  return make("details", {}, make("summary", {}, summary), box);
}
