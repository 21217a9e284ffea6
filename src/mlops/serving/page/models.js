// How each model was made, as GET /models tells it; and a form for those that take numbers.

import { bars, button, command, count, find, make, milliseconds, moment, name, percent } from "./dom.js";
import { ask, curlKey, whole } from "./server.js";

export const TOP = 5;
const FIELDS = 16;
// The split that says most comes first.
const SPLITS = { __proto__: null, test: "test", val: "validation", train: "training" };

/** All that may be asked: `{name, path, kind, ready, ensemble}`, the default first. */
export function targets(report) {
  const models = report.models.map((model) => {
    const path = `models/${encodeURIComponent(model.name)}/predict`;
    return { name: model.name, path, kind: model.kind, ready: model.ready, ensemble: false };
  });
  const known = new Map(models.map((model) => [model.name, model]));
  const ensembles = report.ensembles.map((ensemble) => {
    const members = Object.keys(ensemble.members).map((member) => known.get(member));
    const path = `ensembles/${encodeURIComponent(ensemble.name)}/predict`;
    const ready = members.every((member) => member?.ready);
    return { name: ensemble.name, path, kind: members[0]?.kind, ready, ensemble: true };
  });
  const all = [...models, ...ensembles];
  return [...all.filter((one) => one.name === report.default), ...all.filter((one) => one.name !== report.default)];
}

const shown = new Map();

/** Show the cards of all models. One that says what it said before stays, with what was typed into it. */
export function showModels(report) {
  const about = new Map([...report.models, ...report.ensembles].map((one) => [one.name, one]));
  const cards = targets(report).map((target) => {
    const told = JSON.stringify([{ ...about.get(target.name), waiting: 0 }, target, report.default]);
    if (shown.get(target.name)?.told !== told) {
      const draw = target.ensemble ? ensembleCard : modelCard;
      shown.set(target.name, { told, card: draw(about.get(target.name), target, target.name === report.default) });
    }
    return shown.get(target.name).card;
  });
  const none = "There is no model yet. Start the server with one: mlops serve model.onnx";
  // Only what changed moves: a field that is typed into would lose the keyboard.
  if (cards.length !== find("models").children.length || cards.some((card) => !card.isConnected))
    find("models").replaceChildren(...(cards.length ? cards : [make("p", {}, none)]));
}

function modelCard(model, target, isDefault) {
  const card = make("article", { className: "card", "aria-label": `Model ${model.name}` });
  card.append(title(model.name, isDefault));
  if (!model.ready) {
    const why = model.refused ? `Not ready: ${model.refused}` : "Is being loaded…";
    card.append(make("p", { className: model.refused ? "bad" : "soft" }, why));
    return card;
  }
  if (model.kind === "features") card.append(make("p", { className: "soft" }, "Takes numbers, not pictures"));
  if (model.refused) card.append(make("p", { className: "bad" }, `A newer file is not in use: ${model.refused}`));
  card.append(facts(model));
  if (model.kind === "features") card.append(numbers(model.input, target));
  card.append(everything(model));
  return card;
}

function ensembleCard(ensemble, target, isDefault) {
  const shares = Object.entries(ensemble.members).map(([member, share]) => [name(member), percent(share)]);
  const card = make("article", { className: "card", "aria-label": `Ensemble ${ensemble.name}` });
  const lead = `The ${isEven(ensemble) ? "" : "weighted "}mean of these models`;
  card.append(title(ensemble.name, isDefault), make("p", { className: "soft" }, lead), list(shares));
  if (target.kind === "features" && target.ready)
    card.append(make("p", { className: "soft" }, `Ask it with curl, as its members: POST /${target.path}`));
  return card;
}

const title = (text, isDefault) =>
  make("h3", {}, name(text), ...(isDefault ? [make("span", { className: "soft" }, "the default")] : []));

const isEven = (ensemble) => new Set(Object.values(ensemble.members)).size === 1;

function facts(model) {
  const rows = [["Classes", model.classes.length.toLocaleString("en")], ["Input", taken(model.input)]];
  const { data, metrics } = model;
  const scored = Object.keys(SPLITS).find((split) => typeof metrics?.[`${split}_Accuracy`] === "number");
  if (scored) rows.push(["Accuracy", `${(100 * metrics[`${scored}_Accuracy`]).toFixed(2)}% on ${SPLITS[scored]} data`]);
  if (data?.name) {
    const images = Object.values(counts(data)).reduce((total, number) => total + number, 0);
    rows.push(["Data", [name(data.name), images ? `, ${count(images, "image")}` : ""]]);
  }
  if (model.created) rows.push(["Made (UTC)", moment(model.created)]);
  rows.push(["Checkpoint", model.checkpoint ? make("code", {}, String(model.checkpoint).slice(0, 12)) : "not known"]);
  return list(rows);
}

/** Images of each split, as far as they are known. */
function counts(data) {
  return Object.fromEntries(Object.entries(data?.counts ?? {}).filter(([, number]) => typeof number === "number"));
}

function taken(input) {
  if (input.features) return count(input.features, "number");
  const how = { __proto__: null, squash: "squeezed", pad: "with borders" }[input.resize];
  return `${input.width} × ${input.height}${how ? `, ${how}` : ""}`;
}

function everything(model) {
  const rows = [["Version", make("code", {}, model.version)], ["File (SHA-256)", make("code", {}, model.sha256)]];
  if (model.checkpoint) rows.push(["Checkpoint", make("code", {}, String(model.checkpoint))]);
  if (model.data?.fingerprint) rows.push(["Data", make("code", {}, String(model.data.fingerprint))]);
  for (const [split, number] of Object.entries(counts(model.data))) {
    rows.push([`Images (${SPLITS[split] ?? split})`, number.toLocaleString("en")]);
  }
  for (const [metric, value] of Object.entries(model.metrics ?? {})) {
    if (typeof value === "number") rows.push([metric, Number.isInteger(value) ? String(value) : value.toFixed(4)]);
  }
  const classes = make("ol", { className: "classes", start: 0, tabIndex: 0, "aria-label": `Classes of ${model.name}` });
  classes.append(...model.classes.map((label) => make("li", {}, name(label))));
  const summary = make("summary", {}, "All metrics, digests and classes");
  return make("details", {}, summary, list(rows), classes);
}

function list(rows) {
  const cells = rows.map(([what, value]) => {
    const label = typeof what === "string" ? what : [what];
    return [make("dt", {}, ...[label].flat()), make("dd", {}, ...[value].flat())];
  });
  return make("dl", {}, ...cells.flat());
}

/** A form for a row of numbers. */
function numbers(input, target) {
  const names = Array.from({ length: input.features }, (_, index) => String(input.names?.[index] ?? `Number ${index + 1}`));
  const single = names.length <= FIELDS;
  const labels = single ? names : [`${names.length} numbers, with spaces or commas between`];
  const fields = labels.map((_, index) => {
    const id = `${target.name}-${index}`;
    return single ? make("input", { type: "text", id, autocomplete: "off" }) : make("textarea", { id, rows: 4, className: "wide" });
  });
  const answer = make("div", { className: "answer", "aria-live": "polite" });
  const form = make("form", { className: "numbers", noValidate: true });
  labels.forEach((label, index) => {
    const cell = make("label", { htmlFor: fields[index].id, className: single ? "" : "wide" }, name(label));
    form.append(single ? make("div", {}, cell, fields[index]) : cell, ...(single ? [] : [fields[index]]));
  });
  form.append(make("button", { type: "submit", className: "second small wide" }, "Ask"));
  form.onsubmit = async (event) => {
    event.preventDefault();
    const words = single ? fields.map((field) => field.value.trim()) : fields[0].value.split(/[\s,;]+/).filter(Boolean);
    const row = words.map((word) => (word === "" ? NaN : Number(word)));
    const bad = row.map((value) => !Number.isFinite(value));
    const wrong = bad.indexOf(true);
    const refused = wrong >= 0 || row.length !== names.length;
    fields.forEach((field, index) => field.setAttribute("aria-invalid", single ? bad[index] : refused));
    if (refused) {
      const missing = wrong >= 0 ? `${names[wrong] ?? "The list"}: needs a number.` : `${count(row.length, "number")} of ${names.length}.`;
      answer.replaceChildren(make("p", { className: "bad" }, missing));
      fields[single && wrong >= 0 ? wrong : 0].focus();
      return;
    }
    const body = JSON.stringify({ features: [row] });
    const path = `${target.path}?top=${TOP}`;
    try {
      const told = await ask(path, { method: "POST", body, headers: { "Content-Type": "application/json" } });
      const line = `curl${curlKey()} -H "Content-Type: application/json" -d '${body}' "${whole(path)}"`;
      const time = make("p", { className: "soft" }, milliseconds(told.milliseconds));
      answer.replaceChildren(bars(told.predictions[0].top), time, command("The same with curl", line));
    } catch (refusal) {
      const again = button("Try again", () => form.requestSubmit());
      answer.replaceChildren(make("p", { className: "bad" }, refusal.message), again);
    }
  };
  return make("div", {}, form, answer);
}
