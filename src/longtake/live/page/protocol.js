// The binary frames and the closing codes of docs/live-protocol.md. No DOM.

/**
 * One picture of a take, with what its header says.
 * @typedef {object} Frame
 * @property {string} take id, 16 hexadecimal digits
 * @property {number} frame index from 0
 * @property {number} chunk index from 0
 * @property {number} prompt id of the entry of the timeline that holds
 * @property {number} time seconds of video
 * @property {number} made seconds since 1970; 0 if it was read back from the recording
 * @property {string} type media type of the picture
 * @property {Uint8Array} picture
 */

export const HEADER_BYTES = 40;
const VERSION = 1;
/** @type {Record<number, string>} */
const PICTURES = { 1: "image/jpeg", 2: "image/webp" };

/**
 * Reads a binary message.
 * @param {ArrayBuffer} message
 * @returns {Frame}
 * @throws {Error} if it is no frame of this protocol
 */
export function parseFrame(message) {
  if (message.byteLength <= HEADER_BYTES) throw new Error("The server sent a frame without a picture.");
  const view = new DataView(message);
  const version = view.getUint8(2);
  if (view.getUint16(0) !== 0x4c54) throw new Error("The server sent something that is no frame.");
  if (version !== VERSION) throw new Error(`The server sends frames of version ${version}; reload the page.`);
  const type = PICTURES[view.getUint8(3)];
  if (!type) throw new Error(`The server sends pictures of kind ${view.getUint8(3)}; reload the page.`);
  return {
    take: view.getBigUint64(4).toString(16).padStart(16, "0"),
    frame: view.getUint32(12),
    chunk: view.getUint32(16),
    prompt: view.getUint32(20),
    time: view.getFloat64(24),
    made: view.getFloat64(32),
    type,
    picture: new Uint8Array(message, HEADER_BYTES),
  };
}

/**
 * How long to wait before another try to connect: half a second, twice as long each time, ten seconds at most, a
 * little spread so that many viewers do not come back at the same moment.
 * @param {number} failures in a row, from 1
 * @param {number} [spread] in [0, 1)
 * @returns {number} milliseconds
 */
export function reconnectDelay(failures, spread = Math.random()) {
  return Math.min(10_000, 500 * 2 ** (failures - 1)) * (0.8 + 0.4 * spread);
}

/**
 * What a close code of the WebSocket means.
 * @param {number} code
 * @param {string} reason as the server gave it
 * @returns {{retry: boolean, wait: number, message: string | null}} wait: milliseconds before another try, at least
 */
export function readClose(code, reason) {
  switch (code) {
    case 1000: return { retry: false, wait: 0, message: null };
    case 1008: return { retry: false, wait: 0, message: reason || "The server refused what the page sent." };
    case 1009: return { retry: false, wait: 0, message: reason || "The page sent a message that is too large." };
    case 4404: return { retry: false, wait: 0, message: reason || "There is no such take any more." };
    case 4429: return { retry: true, wait: 5000, message: reason || "Too many viewers. Trying again." };
    default: return { retry: true, wait: 0, message: null };
  }
}
