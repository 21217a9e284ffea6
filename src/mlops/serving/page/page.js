// What people do on this page, and what follows from it.

import { button, count, find, make, name } from "./dom.js";
import { showModels, targets } from "./models.js";
import { add, askRefused, askWaiting, clear, limit } from "./pictures.js";
import { ask, hasKey, keepKey, onLocked, Refusal } from "./server.js";

const SOON = 2000;

let report = null;
let loading = null;

const choosable = () => (report ? targets(report).filter((target) => target.ready && target.kind === "images") : []);
const unchosen = new Set();
const asked = () => choosable().filter((target) => !unchosen.has(target.name));

/** Ask which models there are, now; and again soon while one is being loaded. */
function load() {
  loading ??= fetchReport().finally(() => (loading = null));
  return loading;
}

async function fetchReport() {
  try {
    report = await ask("models");
  } catch (refusal) {
    if (!(refusal instanceof Refusal)) throw refusal;
    if (!report) showNone(refusal);
    askAgainWhileOneLoads();
    return;
  }
  find("lock").hidden = true;
  find("forget").hidden = !hasKey();
  find("json").hidden = hasKey(); // a link brings no key
  showModels(report);
  showChoice();
  askWaiting(asked());
  if (!find("versions").textContent) showVersions();
  askAgainWhileOneLoads();
}

function askAgainWhileOneLoads() {
  if (report?.models.some((model) => !model.ready && !model.refused)) setTimeout(load, SOON);
}

function showNone(refusal) {
  if (refusal.status === 401) {
    find("models").replaceChildren(make("p", { className: "soft" }, "They are told to those who have a key."));
    return;
  }
  const why = make("p", { className: "bad", role: "alert" }, refusal.message);
  const again = button("Try again", async () => {
    again.disabled = true;
    await load();
    if (report) find("files").focus();
    else find("models").querySelector("button")?.focus();
  });
  find("models").replaceChildren(why, make("p", {}, again));
}

async function showVersions() {
  try {
    const { version, onnxruntime } = await ask("version");
    find("versions").textContent = `mlops ${version}, onnxruntime ${onnxruntime}`;
  } catch {}
}

function showChoice() {
  const all = choosable();
  find("asked").hidden = all.length < 2;
  const boxes = all.map((target) => {
    const box = make("input", { type: "checkbox", checked: !unchosen.has(target.name) });
    box.onchange = () => {
      if (box.checked) unchosen.delete(target.name);
      else unchosen.add(target.name);
    };
    return make("label", {}, box, name(target.name));
  });
  const names = all.map((target) => target.name).join();
  // Drawn again only where it changes: a box in use would lose the keyboard.
  if (find("asked").dataset.names !== names) find("asked").replaceChildren(make("legend", {}, "Ask"), ...boxes);
  find("asked").dataset.names = names;
}

function take(files) {
  const given = [...files];
  find("drop-wrong").textContent = "";
  if (!given.length) return;
  if (report && !asked().length) {
    const none = choosable().length ? "Choose at least one model to ask." : "No model here takes pictures now; see below.";
    find("drop-wrong").textContent = none;
    return;
  }
  find("drop-wrong").textContent = limit(add(given, asked()));
  find("said").replaceChildren(make("p", {}, `Asking about ${count(given.length, "picture")}`));
  find("results").scrollIntoView({ block: "nearest" });
  if (!report) load();
}

for (const id of ["files", "camera"]) {
  find(id).onchange = (event) => {
    take(event.target.files);
    event.target.value = ""; // the same file may be chosen again
  };
}

document.addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  take(event.clipboardData.files);
});

let inside = 0;
const hovers = (change) => find("drop").classList.toggle("over", (inside = Math.max(0, change)) > 0);
document.addEventListener("dragenter", () => hovers(inside + 1));
document.addEventListener("dragleave", () => hovers(inside - 1));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault(); // else the browser would go to the picture
  hovers(0);
  if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  else find("drop-wrong").textContent = "That is no file. Save the picture first, then drop the file.";
});

find("clear").onclick = () => {
  clear();
  find("said").replaceChildren();
  find("files").focus();
};

function wrongKey(why) {
  find("key-wrong").textContent = why;
  find("key").setAttribute("aria-invalid", why !== "");
}

onLocked((detail) => {
  const opened = find("lock").hidden;
  find("lock").hidden = false;
  wrongKey(hasKey() ? detail : ""); // the first time, nothing was wrong: no key was given
  if (opened || hasKey()) find("key").focus();
});

find("lock").onsubmit = async (event) => {
  event.preventDefault();
  const given = find("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) {
    wrongKey(given ? "A key has no spaces and no such letters." : "Put the key in first.");
    return;
  }
  keepKey(given);
  await load();
  if (!find("lock").hidden) return;
  find("key").value = "";
  askRefused();
  find("files").focus();
};

find("forget").onclick = () => {
  keepKey("");
  location.reload();
};

// Another version answered: what is shown of that model is out of date.
document.addEventListener("answered", ({ detail }) => {
  const known = report.models.find((model) => model.name === detail.model);
  if (known && known.version !== detail.version) load();
});

load();
