// Numbers for people. No DOM.

/**
 * Seconds of video as a clock: 0:08, 12:03, 1:02:03; with a tenth if asked.
 * @param {number | null | undefined} seconds
 * @param {boolean} [tenths]
 */
export function clock(seconds, tenths = false) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–:––";
  const units = Math.floor(Math.max(0, seconds) * 10 + 1e-6);
  const whole = Math.floor(units / 10);
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  const rest = String(whole % 60).padStart(2, "0");
  const head = hours ? `${hours}:${String(minutes).padStart(2, "0")}` : String(minutes);
  return `${head}:${rest}${tenths ? `.${units % 10}` : ""}`;
}

/**
 * A duration in words for screen readers: "1 minute 5 seconds".
 * @param {number} seconds
 */
export function spoken(seconds) {
  const whole = Math.floor(Math.max(0, seconds));
  /** @type {[number, string][]} */
  const parts = [[Math.floor(whole / 3600), "hour"], [Math.floor(whole / 60) % 60, "minute"], [whole % 60, "second"]];
  const said = parts.filter(([n]) => n).map(([n, name]) => `${n} ${name}${n === 1 ? "" : "s"}`);
  return said.join(" ") || "0 seconds";
}

/**
 * A short duration: 0.83 s, 4.9 s, 14 s, 2.5 min, 1.2 h.
 * @param {number | null | undefined} seconds
 */
export function span(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 0.995) return `${seconds.toFixed(2)} s`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 99.5) return `${Math.round(seconds)} s`;
  if (seconds < 5970) return `${short(seconds / 60)} min`;
  return `${short(seconds / 3600)} h`;
}

/** @param {number} value */
function short(value) {
  return value < 9.95 ? value.toFixed(1) : String(Math.round(value));
}

/**
 * How long ago a moment was.
 * @param {number} then seconds since 1970
 * @param {number} now seconds since 1970
 */
export function ago(then, now) {
  const seconds = Math.max(0, now - then);
  if (seconds < 45) return "just now";
  if (seconds < 3570) return `${Math.max(1, Math.round(seconds / 60))} min ago`;
  if (seconds < 86_400) return `${Math.max(1, Math.round(seconds / 3600))} h ago`;
  const days = Math.round(seconds / 86_400);
  return days === 1 ? "yesterday" : `${days} days ago`;
}

/** @param {number} count */
export function bytes(count) {
  const units = ["B", "kB", "MB", "GB"];
  let size = count;
  let unit = 0;
  while (size >= 999.5 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit && size < 9.95 ? size.toFixed(1) : Math.round(size)} ${units[unit]}`;
}
