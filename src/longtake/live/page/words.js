// Putting words that the model knows into a prompt. No DOM.

/**
 * @typedef {{name: string, words: string[]}} Group
 * @typedef {{text: string, start: number, end: number}} Edited the text, and where the new word stands in it
 */

const VOWEL = /^[aeiou]/i;

/**
 * Puts a word into a text: in place of one of its group ("red" for "blue"), else at the caret.
 * @param {string} text
 * @param {string} word
 * @param {Group[]} groups
 * @param {number} caret
 * @returns {Edited}
 */
export function putWord(text, word, groups, caret) {
  const group = groups.find(({ words }) => words.includes(word));
  const found = group ? findWord(text, group.words) : null;
  if (found) return fixArticle(text.slice(0, found.start) + word + text.slice(found.end), found.start, word);
  const before = text.slice(0, caret);
  const after = text.slice(caret);
  const lead = before && !/\s$/.test(before) ? " " : "";
  const trail = after && !/^[\s,.;]/.test(after) ? " " : "";
  return fixArticle(before + lead + word + trail + after, before.length + lead.length, word);
}

/**
 * The first of the words that stands in the text as a whole; where two begin at the same place, the longer one.
 * @param {string} text
 * @param {string[]} words
 */
export function findWord(text, words) {
  const longestFirst = [...words].sort((a, b) => b.length - a.length).map(escape);
  const match = new RegExp(`(?<![\\p{L}\\p{N}])(?:${longestFirst.join("|")})(?![\\p{L}\\p{N}])`, "iu").exec(text);
  return match ? { word: match[0], start: match.index, end: match.index + match[0].length } : null;
}

/**
 * "a orange" becomes "an orange", and "an red" "a red".
 * @param {string} text
 * @param {number} start of the word
 * @param {string} word
 * @returns {Edited}
 */
function fixArticle(text, start, word) {
  const head = text.slice(0, start);
  const fixed = head.replace(/(?<![\p{L}\p{N}])(a)n?(\s+)$/iu, (_, a, gap) => (VOWEL.test(word) ? `${a}n${gap}` : a + gap));
  return { text: fixed + text.slice(start), start: fixed.length, end: fixed.length + word.length };
}

/** @param {string} text */
function escape(text) {
  return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}
