// What the server refused or what went wrong, in its own words, and what screen readers are told.

import { find, icon, make } from "./dom.js";

const STAYS = 12_000;

/**
 * Shows a sentence until it is closed or some time has passed. The same sentence is shown once.
 * @param {unknown} problem
 * @param {"problem" | "remark"} [kind]
 */
export function notify(problem, kind = "problem") {
  const text = problem instanceof Error ? problem.message : String(problem);
  const notices = find("#notices");
  for (const other of [...notices.children]) if (other.firstChild?.textContent === text) other.remove();
  const close = make("button", { type: "button", class: "button bare", "aria-label": "Close", click: () => notice.remove() }, icon("close"));
  const notice = make("div", { class: `notice ${kind}` }, make("p", {}, text), close);
  notices.append(notice);
  while (notices.children.length > 3) notices.firstChild.remove();
  window.setTimeout(() => notice.remove(), STAYS);
}

/**
 * Tells screen readers, politely, and only what differs from what they were told last.
 * @param {string} text
 */
export function announce(text) {
  const announcer = find("#announcer");
  if (announcer.textContent !== text) announcer.textContent = text;
}

/**
 * Runs something that may fail; a failure is shown.
 * @template T
 * @param {() => Promise<T>} what
 * @returns {Promise<T | null>} null if it failed
 */
export async function attempt(what) {
  try {
    return await what();
  } catch (problem) {
    notify(problem);
    return null;
  }
}
