// Plays one take: frames come over the link into the buffer, and go from there to the screen when they are due.

import { creditWindow, Credit, JitterBuffer } from "./buffer.js";
import { Link } from "./link.js";
import { parseFrame } from "./protocol.js";

const LATE = 0.75; // seconds behind what is made, beyond what must be
const REST_AFTER = 60_000; // milliseconds in a hidden tab

/**
 * @typedef {import("./protocol.js").Frame & {bitmap: ImageBitmap}} Shown
 *
 * What happens, told to who shows it.
 * @typedef {object} Audience
 * @property {(frame: Shown) => void} frame was drawn
 * @property {(take: any) => void} take a Take of the protocol
 * @property {(entries: any[], all: boolean) => void} entries of the timeline, new or changed, or all there are
 * @property {(memory: any) => void} memory a Memory of the protocol
 * @property {() => void} behind the server left out frames, as this viewer was too slow
 * @property {() => void} changed whether it plays, is connected, is live
 * @property {(message: string) => void} problem that is no end
 */

export class Player {
  connected = false;
  playing = true;
  /** Follows what is being made; else something recorded is looked at. */
  live = true;
  /** Why nothing will come any more. @type {string | null} */
  trouble = null;
  /** The frame on the screen. @type {Shown | null} */
  shown = null;
  /** The last frame that was ever on the screen, in this visit. */
  seen = -1;

  #screen;
  #audience;
  /** @type {JitterBuffer<Shown>} */
  #buffer;
  #credit;
  #ahead;
  #link;
  #next = -1; // the frame after the last that came
  #decoding = 0;
  #epoch = 0; // of frames that belong together; those of an older one are dropped
  #seeking = false; // what comes until the server has said "skip" is from elsewhere
  /** @type {Promise<void>} */
  #queue = Promise.resolve();
  #emptySince = performance.now();
  #raf = 0;
  #rest = 0;

  /**
   * @param {any} take
   * @param {{ahead: number, limits: {credit: number}}} info
   * @param {import("./screen.js").Screen} screen
   * @param {Audience} audience
   */
  constructor(take, info, screen, audience) {
    this.#screen = screen;
    this.#audience = audience;
    this.#ahead = info.ahead;
    this.#buffer = new JitterBuffer({ fps: take.fps, drop: (frame) => frame.bitmap.close() });
    this.#credit = new Credit(creditWindow(take.fps, take.chunk_frames, info.ahead, info.limits.credit));
    this.#credit.open = !document.hidden;
    document.addEventListener("visibilitychange", this.#visibility);
    this.#link = new Link(take.id, {
      message: (message) => this.#hear(message),
      picture: (data) => this.#receive(data),
      connected: (connected) => this.#connection(connected),
      over: (message) => this.#over(message),
      from: () => (this.#next >= 0 && !document.hidden ? this.#next : "live"),
    });
    this.#raf = requestAnimationFrame(this.#tick);
  }

  close() {
    cancelAnimationFrame(this.#raf);
    window.clearTimeout(this.#rest);
    document.removeEventListener("visibilitychange", this.#visibility);
    this.#link.close();
    this.#forget();
  }

  /** Seconds of video that wait to be shown. */
  get buffered() {
    return this.#buffer.seconds;
  }

  /** Whether nothing has been there to show for so long that somebody would wonder. */
  get waiting() {
    return this.#buffer.size === 0 && performance.now() - this.#emptySince > 900;
  }

  /** Whether the picture stands because there is no more, not because it was stopped. */
  get empty() {
    return this.#buffer.size === 0 && this.#decoding === 0;
  }

  play() {
    if (this.playing) return;
    this.playing = true;
    this.#buffer.hold();
    this.#changed();
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    this.#changed();
  }

  /**
   * Goes on at a frame, or at what is being made.
   * @param {number | "live"} from
   */
  seek(from) {
    this.#forget();
    this.live = from === "live";
    if (from !== "live") this.#next = from;
    this.#seeking = this.connected;
    this.#link.send({ type: "play", from });
    this.#giveCredit();
    this.#changed();
  }

  #forget() {
    this.#epoch += 1;
    this.#buffer.clear();
    this.#emptySince = performance.now();
  }

  /** @param {any} message */
  #hear(message) {
    switch (message.type) {
      case "hello":
        this.#next = message.from;
        this.live = message.live;
        this.#audience.entries(message.timeline, true);
        this.#take(message.take);
        if (message.memory) this.#audience.memory(message.memory);
        this.#changed();
        break;
      case "take":
        this.#take(message.take);
        break;
      case "timeline":
        this.#audience.entries([message.entry], false);
        break;
      case "memory":
        this.#audience.memory(message.memory);
        break;
      case "skip":
        if (message.reason === "seek") {
          if (!this.#seeking) this.#forget(); // the second of two seeks in a row
          this.#seeking = false;
        }
        if (message.reason === "slow") this.#audience.behind();
        this.#next = message.to;
        break;
      case "gone":
        this.#over(message.message);
        break;
    }
  }

  /** @param {any} take */
  #take(take) {
    this.#buffer.realTime = take.speed?.real_time ?? Infinity;
    const behind = this.shown ? (take.frames - this.shown.frame) / take.fps : 0;
    this.#buffer.late = this.live && behind > this.#ahead + take.chunk_frames / take.fps + LATE;
    this.#audience.take(take);
  }

  /** @param {ArrayBuffer} data */
  #receive(data) {
    this.#credit.received();
    let frame;
    try {
      frame = parseFrame(data);
    } catch (error) {
      this.#over(/** @type {Error} */ (error).message);
      this.#link.close();
      return;
    }
    if (this.#seeking) {
      this.#giveCredit();
      return;
    }
    this.#next = frame.frame + 1;
    this.#decode(frame);
  }

  /**
   * Decodes in the background; the order is kept.
   * @param {import("./protocol.js").Frame} frame
   */
  #decode(frame) {
    const epoch = this.#epoch;
    this.#decoding += 1;
    const picture = createImageBitmap(new Blob([/** @type {BlobPart} */ (frame.picture)], { type: frame.type }));
    this.#queue = this.#queue.then(async () => {
      try {
        const bitmap = await picture;
        if (epoch === this.#epoch) this.#buffer.push({ ...frame, bitmap }, performance.now());
        else bitmap.close();
      } catch {
        this.#audience.problem(`Frame ${frame.frame} could not be decoded.`);
      } finally {
        this.#decoding -= 1;
      }
    });
  }

  #giveCredit() {
    if (!this.connected) return;
    const frames = this.#credit.due(this.#buffer.size + this.#decoding);
    if (frames) this.#link.send({ type: "credit", frames });
  }

  #tick = () => {
    this.#raf = requestAnimationFrame(this.#tick);
    if (this.#buffer.size) this.#emptySince = performance.now();
    const frame = this.playing ? this.#buffer.take(performance.now()) : null;
    if (frame) {
      this.shown = frame;
      this.seen = Math.max(this.seen, frame.frame);
      this.#screen.show(frame.bitmap);
      this.#audience.frame(frame);
    }
    this.#giveCredit();
  };

  /** @param {boolean} connected */
  #connection(connected) {
    this.connected = connected;
    this.#seeking = false;
    this.#credit.reset();
    this.#giveCredit();
    this.#changed();
  }

  /** @param {string} message */
  #over(message) {
    this.trouble = message;
    this.#changed();
  }

  /**
   * Nobody looks: no credit, and after a while no connection. Then back to what is being made, unless something
   * recorded was looked at.
   */
  #visibility = () => {
    this.#credit.open = !document.hidden;
    window.clearTimeout(this.#rest);
    if (document.hidden) {
      this.#rest = window.setTimeout(() => this.#link.rest(), REST_AFTER);
      return;
    }
    this.#buffer.hold();
    if (this.#link.resting && !this.trouble) {
      this.#forget();
      if (this.live) this.#next = -1;
      this.#link.wake();
    } else if (this.live && this.playing && this.connected) this.seek("live");
  };

  #changed() {
    this.#audience.changed();
  }
}
