// Each picture with what every model says of it.

import { bars, button, bytes, command, count, find, make, milliseconds, name, percent } from "./dom.js";
import { TOP } from "./models.js";
import { ask, curlKey, Refusal, whole } from "./server.js";

const MOST = 24;
// Pictures with fewer pixels a side are enlarged with sharp edges.
const TINY = 100;

// The newest first: {file, url, card, slots}.
let pictures = [];

/** Take in files; `asked` gives what to ask, empty while that is not known. Returns how many were left out. */
export function add(files, asked) {
  const taken = files.slice(0, MOST).map(draw);
  pictures = [...taken, ...pictures];
  pictures.splice(MOST).forEach(drop);
  find("pictures").prepend(...taken.map((picture) => picture.card));
  find("results").hidden = false;
  taken.forEach((picture) => askAll(picture, asked));
  return files.length - taken.length;
}

/** Ask about the pictures that came before anyone could be asked. */
export function askWaiting(asked) {
  pictures.filter((picture) => !picture.slots.length).forEach((picture) => askAll(picture, asked));
}

/** Ask again where an answer is missing: there is a key now. */
export function askRefused() {
  for (const picture of pictures) {
    for (const slot of picture.slots) if (slot.refusal) askOne(picture, slot);
  }
}

export function clear() {
  pictures.splice(0).forEach(drop);
  find("results").hidden = true;
}

function drop(picture) {
  picture.gone = true;
  picture.card.remove();
  URL.revokeObjectURL(picture.url);
}

function draw(file) {
  const url = URL.createObjectURL(file);
  const label = file.name || "picture";
  const size = make("span", {}, bytes(file.size));
  const image = make("img", { src: url, alt: `The picture ${label}` });
  image.onload = () => {
    size.textContent = `${image.naturalWidth} × ${image.naturalHeight}, ${bytes(file.size)}`;
    image.classList.toggle("tiny", Math.max(image.naturalWidth, image.naturalHeight) < TINY);
  };
  // TIFF and PPM are read by the server, but shown by few browsers.
  image.onerror = () => image.replaceWith(make("div", { className: "blank soft" }, "No preview"));
  const figure = make("figure", {}, image, make("figcaption", {}, name(label), make("br"), size));
  const verdict = make("div", { className: "verdict" });
  const answers = make("div", { className: "answers" });
  const curl = make("div");
  const card = make("article", { className: "card picture", "aria-label": label, tabIndex: -1 }, figure, verdict, answers, curl);
  const picture = { file, label, url, card, verdict, answers, curl, slots: [], gone: false };
  judge(picture);
  return picture;
}

async function askAll(picture, asked) {
  if (!asked.length) return;
  picture.slots = asked.map((target) => {
    const time = make("span", { className: "soft" });
    const body = make("div");
    const title = make("h4", {}, name(target.name), time);
    const node = make("section", { className: "answer", "aria-label": `${target.name} says` }, title, body);
    return { target, time, body, node, top: null, refusal: null, round: 0, took: 0 };
  });
  picture.answers.replaceChildren(...picture.slots.map((slot) => slot.node));
  showCommands(picture);
  await Promise.all(picture.slots.map((slot) => askOne(picture, slot)));
}

async function askOne(picture, slot) {
  const round = (slot.round += 1);
  slot.refusal = null;
  slot.top = null;
  slot.time.textContent = "";
  slot.body.replaceChildren(make("p", { className: "soft waiting" }, "Asking…"));
  judge(picture);
  try {
    await readable(picture.file);
    const form = new FormData();
    form.append("file", picture.file, picture.label);
    const sent = performance.now();
    const told = await ask(`${slot.target.path}?top=${TOP}`, { method: "POST", body: form });
    if (round !== slot.round) return;
    slot.top = told.predictions[0].top;
    slot.time.textContent = milliseconds(told.milliseconds);
    slot.took = performance.now() - sent;
    slot.body.replaceChildren(bars(slot.top));
    document.dispatchEvent(new CustomEvent("answered", { detail: told }));
  } catch (refusal) {
    if (!(refusal instanceof Refusal)) throw refusal;
    if (round !== slot.round) return;
    slot.refusal = refusal;
    slot.body.replaceChildren(make("p", { className: "bad" }, refusal.message));
    if (!refusal.final) slot.body.append(again(picture, slot));
  }
  judge(picture);
}

/** A button that asks again, one model or all, and keeps the keyboard near. */
function again(picture, ...slots) {
  const pressed = button("Try again", () => {
    picture.card.focus();
    slots.forEach((slot) => askOne(picture, slot));
  });
  pressed.setAttribute("aria-label", `Try again: ${slots.map((slot) => slot.target.name).join(", ")}`);
  return pressed;
}

async function readable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Refusal(`${file.name}: cannot be read; it is a folder, or has been moved`, 0, { final: true });
  }
}

/** The line that says it all, and says it to screen readers once everyone has answered. */
function judge(picture) {
  const { slots, verdict } = picture;
  const answered = slots.filter((slot) => slot.top);
  const refused = slots.filter((slot) => slot.refusal);
  picture.answers.hidden = false;
  if (!slots.length || answered.length + refused.length < slots.length) {
    const waits = slots.length ? "Asking…" : "Waits for a model";
    verdict.replaceChildren(make("h3", { className: "soft" }, waits));
    return;
  }
  if (!answered.length) {
    const { message, final } = slots[0].refusal;
    const same = slots.every((slot) => slot.refusal.message === message);
    verdict.replaceChildren(make("h3", {}, "No answer"));
    // Said once, where all say the same.
    if (same) verdict.append(make("p", { className: "bad" }, message), ...(final ? [] : [again(picture, ...slots)]));
    picture.answers.hidden = same;
    say(picture, `no answer. ${message}`);
    return;
  }
  const votes = new Map();
  for (const { top } of answered) votes.set(top[0].class, [...(votes.get(top[0].class) ?? []), top[0].probability]);
  const [best, shares] = [...votes].sort((a, b) => b[1].length - a[1].length || sum(b[1]) - sum(a[1]))[0];
  let who = `${percent(shares[0])} sure`;
  if (answered.length > 1) {
    const least = percent(Math.min(...shares)), most = percent(Math.max(...shares));
    const all = answered.length === 2 ? "Both agree" : `All ${answered.length} agree`;
    const voters = shares.length === answered.length ? all : `${shares.length} of ${answered.length} say so`;
    who = `${voters}, ${least === most ? least : `${least} to ${most}`} sure`;
  }
  if (refused.length) who += `; ${refused.length} did not answer`;
  const took = `answered within ${milliseconds(Math.max(...answered.map((slot) => slot.took)))}`;
  // More speaks against it than for it.
  const unsure = sum(shares) / shares.length < 0.5 ? "Perhaps " : "";
  verdict.replaceChildren(make("h3", {}, make("span", { className: "soft" }, unsure), name(best)), make("p", { className: "soft" }, `${who}; ${took}`));
  say(picture, `${unsure}${best}. ${who}`);
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

function say(picture, text) {
  if (!picture.gone) find("said").append(make("p", {}, `${picture.label}: ${text}`));
  while (find("said").children.length > 3) find("said").firstChild.remove();
}

function showCommands(picture) {
  // A name that a shell or curl could take for more than a name is not put into a command to copy.
  const plain = /^[\p{L}\p{N}_][\p{L}\p{N}._ ()+-]*$/u.test(picture.label);
  const file = `'file=@${plain ? picture.label : "PICTURE"}'`;
  const lines = picture.slots.map(({ target }) => `curl${curlKey()} -F ${file} "${whole(target.path)}?top=${TOP}"`);
  picture.curl.replaceChildren(command("The same with curl", lines.join("\n")));
}

export const limit = (left) =>
  left ? `${count(left, "picture")} left out: ${MOST} at once are shown. For folders there is mlops predict.` : "";
