// The jitter buffer and the credit that keeps it filled. No DOM, no clock: the time is always given.

/**
 * Frames that have come and are not shown yet, and the clock that says when each is due.
 *
 * It starts once `target` seconds are there, or when nothing more has come for a while, and then gives out frames at
 * `fps`. It plays a few per cent faster or slower to keep its lowest level near the target, somewhat faster while it is
 * late, and at the pace of the device where that is slower than real time.
 *
 * @template {{frame: number}} F
 */
export class JitterBuffer {
  /** @type {F[]} */
  #frames = [];
  #drop;
  #due = 0;
  #pushed = -Infinity;
  #low = Infinity; // lowest level in this second
  #lowBefore = Infinity; // and in the last one
  #count = 0;

  /**
   * @param {object} settings
   * @param {number} settings.fps
   * @param {number} [settings.target] seconds
   * @param {(frame: F) => void} [settings.drop] told of frames that will not be shown
   */
  constructor({ fps, target = 0.5, drop = () => {} }) {
    this.fps = fps;
    this.target = Math.max(2, Math.round(target * fps));
    this.realTime = Infinity; // speed of the device
    this.late = false; // what is shown is far behind what is made
    this.starved = 0; // times that it ran empty
    this.filling = true;
    this.#drop = drop;
  }

  /** Frames in it. */
  get size() {
    return this.#frames.length;
  }

  /** Seconds in it. */
  get seconds() {
    return this.#frames.length / this.fps;
  }

  /**
   * @param {F} frame
   * @param {number} now milliseconds
   */
  push(frame, now) {
    this.#frames.push(frame);
    this.#pushed = now;
  }

  /** Forgets all frames and fills anew. */
  clear() {
    this.#frames.forEach(this.#drop);
    this.#frames = [];
    this.filling = true;
    this.#low = this.#lowBefore = Infinity;
  }

  /** Starts the clock anew at the next frame, after a pause. */
  hold() {
    this.#due = 0;
  }

  /** How fast to play; 1 is the take's own speed. */
  get rate() {
    const pace = this.realTime < 0.97 ? Math.max(0.1, this.realTime) : 1;
    if (this.late) return pace * 1.1;
    if (pace < 1) return pace;
    const low = Math.min(this.#low, this.#lowBefore);
    if (low === Infinity) return 1;
    if (low > this.target) return 1.04;
    return low < this.target / 4 ? 0.97 : 1;
  }

  /**
   * The frame to show now, null if none is due. Frames that should have been shown before it (the page could not
   * draw) are passed over: the video keeps its time.
   * @param {number} now milliseconds
   * @returns {F | null}
   */
  take(now) {
    if (this.filling) {
      const settled = this.#frames.length > 0 && now - this.#pushed > 400;
      if (this.#frames.length < this.target && !settled) return null;
      this.filling = false;
      this.#due = now;
    }
    if (this.#due === 0) this.#due = now;
    if (now < this.#due) return null;
    if (this.#frames.length === 0) {
      this.filling = true;
      this.starved += 1;
      return null;
    }
    const interval = 1000 / this.fps / this.rate;
    let frame = this.#next();
    this.#due += interval;
    while (now >= this.#due && this.#frames.length > 0) {
      this.#drop(frame);
      frame = this.#next();
      this.#due += interval;
    }
    return frame;
  }

  #next() {
    const frame = /** @type {F} */ (this.#frames.shift());
    this.#low = Math.min(this.#low, this.#frames.length);
    this.#count += 1;
    if (this.#count % this.fps === 0) {
      this.#lowBefore = this.#low;
      this.#low = Infinity;
    }
    return frame;
  }
}

/**
 * Credit for the server: so many frames may be under way or waiting here, no more.
 */
export class Credit {
  /** @param {number} window frames under way and waiting, together */
  constructor(window) {
    this.window = window;
    this.open = true; // closed while nobody looks
    this.underWay = 0;
  }

  /** A new connection: nothing is under way. */
  reset() {
    this.underWay = 0;
  }

  /** A frame has come. */
  received() {
    this.underWay = Math.max(0, this.underWay - 1);
  }

  /**
   * How much to give now, and takes note that it was given. Small amounts are saved up.
   * @param {number} waiting frames in the buffer and in decoding
   * @returns {number} 0 for nothing
   */
  due(waiting) {
    if (!this.open) return 0;
    const missing = this.window - this.underWay - waiting;
    if (missing < Math.min(8, this.window / 4)) return 0;
    this.underWay += missing;
    return Math.min(256, missing);
  }
}

/**
 * The window of credit for a take: what the server sends ahead, and a little more.
 * @param {number} fps
 * @param {number} chunkFrames
 * @param {number} ahead seconds
 * @param {number} limit that the server sets
 */
export function creditWindow(fps, chunkFrames, ahead, limit) {
  return Math.min(limit, Math.max(32, Math.ceil(fps * (ahead + 0.25)) + chunkFrames));
}
