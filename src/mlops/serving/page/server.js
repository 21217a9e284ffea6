// Requests to this server, and why one has no answer.

const STORED = "mlops-key";
const LONGEST = 60_000;
// Requests under way at once; a browser itself has no more connections to one server.
const AT_ONCE = 6;
const PATIENCE = 3;

// The same request would be refused the same way.
const FINAL = [400, 413, 415, 422];

/** A request that was not answered; `status` is 0 where nothing came back. */
export class Refusal extends Error {
  constructor(detail, status = 0, { wait = 0, final = FINAL.includes(status) } = {}) {
    super(detail);
    this.status = status;
    this.wait = wait;
    this.final = final;
  }
}

// Where a browser keeps no storage for this page, the key lasts as long as the page.
let key = "";
try {
  key = sessionStorage.getItem(STORED) ?? "";
} catch {}

export const hasKey = () => key !== "";

export function keepKey(given) {
  key = given;
  try {
    if (given) sessionStorage.setItem(STORED, given);
    else sessionStorage.removeItem(STORED);
  } catch {}
}

let locked = () => {};
/** What to do when the server asks for a key; it is given the server's words. */
export const onLocked = (callback) => (locked = callback);

async function once(path, options) {
  const headers = new Headers(options.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  const signal = AbortSignal.timeout(LONGEST);
  let answer, told;
  try {
    answer = await fetch(path, { cache: "no-store", ...options, headers, signal });
    told = await answer.json();
  } catch (error) {
    if (error.name === "TimeoutError") throw new Refusal("No answer came within a minute.");
    if (answer) throw new Refusal(`Status ${answer.status} without a word of explanation.`, answer.status);
    throw new Refusal(await whyNot(options));
  }
  if (answer.ok) return told;
  const detail = typeof told?.detail === "string" ? told.detail : `Status ${answer.status}.`;
  if (answer.status === 401) locked(detail);
  throw new Refusal(detail, answer.status, { wait: Number(answer.headers.get("Retry-After")) || 0 });
}

async function whyNot(options) {
  if (!options.body) return "The server does not answer.";
  try {
    await fetch("health", { cache: "no-store", signal: AbortSignal.timeout(5000) });
  } catch {
    return "The server does not answer.";
  }
  return "The server ended the connection while the picture was sent; it may be too large.";
}

let underWay = 0;
const waiting = [];

/** The JSON of an answer. A busy server (429) is asked again, as often as is polite. */
export async function ask(path, options = {}) {
  if (underWay >= AT_ONCE) await new Promise((go) => waiting.push(go));
  underWay += 1;
  try {
    for (let tries = 1; ; tries += 1) {
      try {
        return await once(path, options);
      } catch (refusal) {
        if (refusal.status !== 429 || tries === PATIENCE || refusal.wait > 10) throw refusal;
        await new Promise((go) => setTimeout(go, 1000 * Math.max(1, refusal.wait)));
      }
    }
  } finally {
    underWay -= 1;
    waiting.shift()?.();
  }
}

/** What curl is told before the address. */
export const curlKey = () => (hasKey() ? ' -H "Authorization: Bearer $KEY"' : "");

/** An address of this server, whole. */
export const whole = (path) => new URL(path, document.baseURI).href;
