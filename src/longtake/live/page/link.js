// The WebSocket of one take: connects, says what comes, and connects again when it breaks.

import { ApiError, address, api } from "./api.js";
import { readClose, reconnectDelay } from "./protocol.js";

/**
 * @typedef {object} Hears
 * @property {(message: any) => void} message a text message
 * @property {(data: ArrayBuffer) => void} picture a binary message
 * @property {(connected: boolean) => void} connected
 * @property {(message: string) => void} over nothing will come any more, and why
 * @property {() => number | "live"} from where to go on after the connection broke
 */

export class Link {
  #id;
  #hears;
  /** @type {WebSocket | null} */
  #socket = null;
  #failures = 0;
  #timer = 0;
  #closed = false;
  #resting = false;

  /**
   * @param {string} id of the take
   * @param {Hears} hears
   */
  constructor(id, hears) {
    this.#id = id;
    this.#hears = hears;
    window.addEventListener("online", this.#now);
    this.#connect();
  }

  /**
   * Sends if there is a connection; what is lost without one is not needed after it.
   * @param {object} message
   */
  send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  /** Ends it for good. */
  close() {
    this.#closed = true;
    window.removeEventListener("online", this.#now);
    this.rest();
  }

  /** Ends the connection until `wake`: a take without viewers costs nothing after a while. */
  rest() {
    this.#resting = true;
    window.clearTimeout(this.#timer);
    this.#timer = 0;
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    // To break off a handshake is an error to a browser, for its console.
    if (socket.readyState === WebSocket.CONNECTING) socket.addEventListener("open", () => socket.close(1000));
    else socket.close(1000);
    this.#hears.connected(false);
  }

  get resting() {
    return this.#resting;
  }

  /** Connects again after `rest`. */
  wake() {
    this.#resting = false;
    if (!this.#socket) this.#connect();
  }

  #connect() {
    this.#timer = 0;
    const socket = new WebSocket(address.watch(this.#id, this.#hears.from()));
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    socket.addEventListener("message", ({ data }) => {
      if (this.#closed || socket !== this.#socket) return;
      if (typeof data !== "string") return this.#hears.picture(data);
      const message = JSON.parse(data);
      if (message.type === "hello") {
        this.#failures = 0;
        this.#hears.connected(true);
      }
      this.#hears.message(message);
    });
    socket.addEventListener("close", ({ code, reason }) => {
      if (!this.#closed && socket === this.#socket) this.#broke(code, reason);
    });
  }

  /**
   * @param {number} code
   * @param {string} reason
   */
  async #broke(code, reason) {
    this.#socket = null;
    this.#hears.connected(false);
    this.#failures += 1;
    let { retry, wait, message } = readClose(code, reason);
    if (retry && this.#failures > 1) {
      // A refused handshake says nothing to a page; the API says it in a sentence.
      try {
        await api.take(this.#id);
      } catch (error) {
        if (error instanceof ApiError && [401, 403, 404, 421].includes(error.status)) {
          retry = false;
          message = error.message;
        }
      }
    }
    if (this.#closed || this.#resting || this.#socket) return;
    if (retry) this.#timer = window.setTimeout(() => this.#connect(), Math.max(wait, reconnectDelay(this.#failures)));
    else this.#hears.over(message ?? "The connection was closed.");
  }

  /** The network is back: why wait. */
  #now = () => {
    if (this.#socket || this.#closed || this.#resting || !this.#timer) return;
    window.clearTimeout(this.#timer);
    this.#connect();
  };
}
