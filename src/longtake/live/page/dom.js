// Small helpers for the document.

/**
 * An element that must be there.
 * @param {string} selector
 * @param {ParentNode} [root]
 * @returns {any}
 */
export function find(selector, root = document) {
  const found = root.querySelector(selector);
  if (!found) throw new Error(`The page has no ${selector}.`);
  return found;
}

/**
 * Makes an element. Text is always text, never HTML.
 * @param {string} tag
 * @param {Record<string, any>} [attributes] `class`, `aria-*` and so on; functions become listeners of that event;
 *   null and false are left out
 * @param {...(Node | string | null)} children
 * @returns {any}
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== false && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/**
 * One of the drawings at the top of index.html.
 * @param {string} name
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/**
 * Shows another drawing in a button.
 * @param {Element} button
 * @param {string} name
 */
export function setIcon(button, name) {
  const href = `#icon-${name}`;
  const use = find("use", button);
  if (use.getAttribute("href") !== href) use.setAttribute("href", href);
}

/**
 * Sets a text only if it differs, so that nothing is read out or drawn again for nothing.
 * @param {Element} element
 * @param {string} text
 */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Gives a button another name, for eyes (tooltip) and ears alike.
 * @param {Element} button
 * @param {string} name
 * @param {string} [key] shortcut
 */
export function setName(button, name, key) {
  if (button.getAttribute("aria-label") === name) return;
  button.setAttribute("aria-label", name);
  button.setAttribute("title", key ? `${name} (${key})` : name);
}

/**
 * A small picture that may not be there (yet).
 * @param {string} source
 * @param {string} alternative
 */
export function thumbnail(source, alternative = "") {
  const image = make("img", { alt: alternative, decoding: "async", draggable: "false" });
  image.addEventListener("error", () => image.classList.add("missing"));
  image.addEventListener("load", () => image.classList.remove("missing"));
  image.src = source;
  return image;
}

/** Storage of the browser, null where it allows none. */
export function storage() {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}

/**
 * A choice that outlives the page.
 * @param {string} key
 * @returns {string | null}
 */
export function remembered(key) {
  try {
    return window.localStorage.getItem(`longtake.${key}`);
  } catch {
    return null;
  }
}

/**
 * @param {string} key
 * @param {string} value
 */
export function remember(key, value) {
  try {
    window.localStorage.setItem(`longtake.${key}`, value);
  } catch {
    // it holds until the page is left
  }
}
