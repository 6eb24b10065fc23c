// The HTTP API of docs/live-protocol.md.

/** What the server, or the way to it, said instead of an answer; the message is for people. */
export class ApiError extends Error {
  /**
   * @param {number} status 0 if there was no answer
   * @param {string} code
   * @param {string} message
   */
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/**
 * @param {string} method
 * @param {string} path below /api
 * @param {unknown} [body]
 * @returns {Promise<any>}
 * @throws {ApiError}
 */
async function request(method, path, body) {
  /** @type {RequestInit} */
  const options = { method, credentials: "same-origin", cache: "no-store" };
  if (body !== undefined) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(`/api${path}`, options);
  } catch {
    throw new ApiError(0, "unreachable", "The server does not answer.");
  }
  if (response.status === 204) return null;
  let answer = null;
  try {
    answer = await response.json();
  } catch {
    // no JSON: from something between the page and the server
  }
  if (response.ok && answer !== null) return answer;
  const told = answer?.error;
  throw new ApiError(
    response.status,
    told?.code ?? "unknown",
    told?.message ?? `The server answered ${response.status} ${response.statusText}.`.replace(" .", "."),
  );
}

export const api = {
  info: () => request("GET", "/info"),
  takes: async () => (await request("GET", "/takes")).takes,
  /** @param {object} wanted */
  create: (wanted) => request("POST", "/takes", wanted),
  /** @param {string} id */
  take: (id) => request("GET", `/takes/${id}`),
  /** @param {string} id */
  remove: (id) => request("DELETE", `/takes/${id}`),
  /**
   * @param {string} id
   * @param {string} prompt
   * @param {string | null} change
   */
  steer: (id, prompt, change) => request("POST", `/takes/${id}/steer`, { prompt, change }),
  /** @param {string} id */
  pause: (id) => request("POST", `/takes/${id}/pause`),
  /** @param {string} id */
  resume: (id) => request("POST", `/takes/${id}/resume`),
  /**
   * @param {string} id
   * @param {number} [until] frame
   */
  repeat: (id, until) => request("GET", `/takes/${id}/repeat${until ? `?until=${until}` : ""}`),
};

/** Addresses of pictures and files. */
export const address = {
  /**
   * @param {string} id
   * @param {number | null} [frame] null for the newest
   * @param {number} [width]
   */
  frame: (id, frame = null, width) => {
    const query = new URLSearchParams();
    if (frame !== null) query.set("frame", String(frame));
    if (width) query.set("width", String(width));
    return `/api/takes/${id}/frame.jpg?${query}`;
  },
  /**
   * @param {string} id
   * @param {number} k
   */
  thumbnail: (id, k) => `/api/takes/${id}/thumbnails/${k}.jpg`,
  /**
   * @param {string} id
   * @param {number} until frame
   */
  video: (id, until) => `/api/takes/${id}/video.mp4?until=${until}`,
  /**
   * @param {string} id
   * @param {number | "live"} from
   */
  watch: (id, from) => {
    const url = new URL(`/api/takes/${id}/watch?from=${from}`, window.location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    return url.href;
  },
};
