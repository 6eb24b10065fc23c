// What a take's state means to who watches it. No DOM.

/**
 * What lies over the picture.
 * @typedef {object} Veil
 * @property {string} title
 * @property {string} [text]
 * @property {"continue" | "new" | "replay"} [action] offered first
 * @property {boolean} [busy] something is going on
 * @property {boolean} [small] the picture stays in view
 */

/**
 * What to say over the picture; null while the video runs.
 * @param {object} now
 * @param {any} now.take a Take of the protocol
 * @param {boolean} now.connected
 * @param {string | null} now.trouble why nothing will come any more
 * @param {boolean} now.playing
 * @param {boolean} now.atEnd everything that was made has been shown
 * @param {boolean} now.waiting the buffer has been empty for a while
 * @returns {Veil | null}
 */
export function veilOf({ take, connected, trouble, playing, atEnd, waiting }) {
  if (trouble) return { title: "This take cannot be shown", text: trouble, action: "new" };
  if (take.state === "failed" && atEnd) {
    const action = take.can_continue ? "continue" : "new";
    return { title: "This take failed", text: take.message ?? undefined, action };
  }
  if (!connected && atEnd) return { title: "Connecting", text: "The server does not answer yet.", busy: true };
  if (!playing && !atEnd) return null;
  switch (take.state) {
    case "queued":
      return { title: placeText(take.place), text: "It begins by itself.", busy: true };
    case "starting":
      return { title: take.frames ? "Reading the snapshot" : "Starting", busy: true };
    case "paused":
      return atEnd ? pausedVeil(take) : null;
    case "finished":
      return atEnd ? { title: "This take has its full length", action: "replay" } : null;
    default:
      return waiting ? { title: "Waiting for frames", busy: true, small: true } : null;
  }
}

/**
 * @param {any} take
 * @returns {Veil}
 */
function pausedVeil(take) {
  switch (take.reason) {
    case "idle":
      return take.message
        ? { title: "Paused", text: take.message, action: "continue" }
        : { title: "Waking up", text: "Nobody was watching.", busy: true };
    case "restart":
      return take.can_continue
        ? { title: "The server was restarted", text: "The take can go on from its last snapshot.", action: "continue" }
        : { title: "The server was restarted", text: take.message ?? "This take cannot be continued.", action: "replay" };
    case "disk": return { title: "The disk is full", text: take.message ?? "Free some space, then continue.", action: "continue" };
    case "turn": return { title: placeText(take.place), text: "Others have their turn.", busy: true };
    default: return { title: "Paused", action: "continue" };
  }
}

/** @param {number | null} place */
export function placeText(place) {
  if (!place) return "In the queue";
  return place === 1 ? "Next in the queue" : `Place ${place} in the queue`;
}

/** @type {Record<string, string>} */
const PAUSES = { idle: "Asleep", restart: "Interrupted", disk: "Disk full", turn: "In the queue" };

/**
 * The state in a few words, for lists and announcements.
 * @param {any} take
 */
export function stateText(take) {
  switch (take.state) {
    case "queued": return placeText(take.place);
    case "paused": return PAUSES[take.reason] ?? "Paused";
    default: return take.state[0].toUpperCase() + take.state.slice(1);
  }
}

/**
 * The memory's text for a new take: its name, and the settings that differ from its own.
 * @param {{name: string, settings: {name: string, value: any}[]}} memory
 * @param {Record<string, string>} chosen by name of the setting
 */
export function memorySpec(memory, chosen) {
  const changed = memory.settings
    .map((setting) => [setting.name, (chosen[setting.name] ?? "").trim(), String(setting.value)])
    .filter(([, value, usual]) => value !== "" && value !== usual)
    .map(([name, value]) => `${name}=${value}`);
  return changed.length ? `${memory.name}:${changed.join(",")}` : memory.name;
}
