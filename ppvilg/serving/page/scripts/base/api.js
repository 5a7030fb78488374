/** The service's own interface, v1/...; every failure is an ApiError with a code that the texts know. */

import { hasText, t } from "./i18n.js";
import { isFinal, set } from "./state.js";

export class ApiError extends Error {
  constructor(code, message, { status = 0, field = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { code, status, field, retryAfter });
  }

  /** A sentence for people: the page's own where it knows the code, and what the service said. */
  get sentence() {
    const known = hasText(`error.${this.code}`) ? t(`error.${this.code}`, { seconds: this.retryAfter ?? "" }) : "";
    if (!known) return this.message;
    return this.code === "offline" || !this.message ? known : `${known} (${this.message})`;
  }
}

async function request(method, path, body = undefined, { headers = {}, signal } = {}) {
  const options = { method, headers: { ...headers }, signal, credentials: "same-origin", cache: "no-store" };
  if (body instanceof Blob) options.body = body;
  else if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    set("online", false);
    throw new ApiError("offline", error.message);
  }
  set("online", true);
  if (response.ok) return response.status === 204 ? null : response.json();
  throw await failure(response);
}

async function failure(response) {
  const answer = await response.json().catch(() => ({}));
  const { code = "internal", message = `${response.status} ${response.statusText}`, field = null } = answer.error ?? {};
  const seconds = Number(response.headers.get("Retry-After"));
  return new ApiError(code, message, { status: response.status, field, retryAfter: seconds || null });
}

export const model = () => request("GET", "v1/model");
export const me = () => request("GET", "v1/me");
export const queue = () => request("GET", "v1/queue");
export const logIn = (key) => request("POST", "v1/session", { key });
export const logOut = () => request("DELETE", "v1/session");

export const job = (id) => request("GET", `v1/jobs/${id}`);
export const cancel = (id) => request("POST", `v1/jobs/${id}/cancel`);
export const unfinished = async () => (await request("GET", "v1/jobs?unfinished=true&limit=50")).jobs;
export const latest = async () => (await request("GET", "v1/jobs?limit=1")).jobs[0] ?? null;

/** The key makes a repeated request (a double click, a lost answer) the same job. */
export const draw = (settings, key) => request("POST", "v1/jobs", settings, { headers: { "Idempotency-Key": key } });

export const picture = (id) => request("GET", `v1/pictures/${id}`);
export const removePicture = (id) => request("DELETE", `v1/pictures/${id}`);
export const pictures = (before = null) =>
  request("GET", `v1/pictures?limit=60${before ? `&before=${encodeURIComponent(before)}` : ""}`);

const asBytes = (blob) => new Blob([blob], { type: blob.type || "application/octet-stream" });
export const upload = (blob) =>
  request("POST", "v1/uploads", asBytes(blob), { headers: { "Content-Type": blob.type } });
export const uploadUrl = (id) => `v1/uploads/${id}.png`;
export const pngInfo = (blob) =>
  request("POST", "v1/png-info", asBytes(blob), { headers: { "Content-Type": "image/png" } });
export const knowledge = (body, signal) => request("POST", "v1/knowledge", body, { signal });

export function randomKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Calls tell(job) on every change until its end; returns a function that stops. A broken stream is opened again. */
export function watch(id, tell) {
  let source = null;
  let timer = 0;
  let stopped = false;
  const stop = () => {
    stopped = true;
    clearTimeout(timer);
    source?.close();
  };
  const receive = (value) => {
    if (stopped) return;
    set("online", true);
    if (isFinal(value)) stop();
    tell(value);
  };
  const open = () => {
    source = new EventSource(`v1/jobs/${id}/events`);
    source.addEventListener("job", (event) => receive(JSON.parse(event.data)));
    source.addEventListener("error", () => {
      if (stopped) return;
      source.close();
      timer = setTimeout(ask, 1000);
    });
  };
  const ask = async () => {
    try {
      receive(await job(id));
    } catch (error) {
      if (error.code === "not_found" || error.code === "no_key") return stop();
      if (!stopped) timer = setTimeout(ask, 2000);
      return undefined;
    }
    if (!stopped) open();
    return undefined;
  };
  open();
  return stop;
}
