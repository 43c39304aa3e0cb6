// An answer on the page: its text with the origins of its tokens, its figures, and a bar for each round.
import { blocks, isContinued, render } from "./markdown.js";

const ORIGINS = { t: "target", d: "draft", c: "cache" };

// The rounds of an answer, as they are kept: [proposed, accepted, hit, letters of the tokens' origins, their characters].
export function packed(round) {
  return [round.proposed, round.accepted, round.hit, round.tokens.map((token) => token.origin[0]).join(""), round.tokens.map((token) => token.characters)];
}

function figuresOf(rounds, seconds) {
  const later = rounds.slice(1); // the first token is the prompt's
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const tokens = sum(later.map((round) => round[3].length)), proposed = sum(later.map((round) => round[0]));
  const lookUps = later.filter((round) => round[2] !== null);
  return {
    tokens: tokens + (rounds.length > 0),
    rate: seconds > 0 && tokens > 0 ? tokens / seconds : null,
    aRound: later.length ? tokens / later.length : null,
    acceptance: proposed ? sum(later.map((round) => round[1])) / proposed : null,
    hits: lookUps.length ? lookUps.filter((round) => round[2]).length / lookUps.length : null,
  };
}

function inWords(figures) {
  const parts = [`${figures.tokens} tokens`];
  if (figures.rate !== null) parts.push(`${figures.rate.toFixed(1)} tokens/s`);
  if (figures.aRound !== null) parts.push(`${figures.aRound.toFixed(2)} tokens a round`);
  if (figures.acceptance !== null) parts.push(`${Math.round(100 * figures.acceptance)}% of the draft accepted`);
  if (figures.hits !== null) parts.push(`${Math.round(100 * figures.hits)}% cache hits`);
  return parts.join(" · ");
}

function roundInWords(round, index, text) {
  const [proposed, accepted, hit] = round;
  if (index === 0) return `The prompt's own pass: “${text}”`;
  const found = hit === null ? "" : hit ? ", prepared in the cache" : ", drafted after a miss";
  return `Round ${index}: ${proposed} proposed${found}, ${accepted} accepted: “${text}”`;
}

export class AnswerView {
  constructor(parent) {
    this.body = parent.appendChild(document.createElement("div"));
    this.body.className = "body";
    this.figures = parent.appendChild(document.createElement("p"));
    this.figures.className = "figures";
    this.strip = parent.appendChild(document.createElement("div"));
    this.strip.className = "rounds";
    this.strip.setAttribute("role", "toolbar");
    this.strip.setAttribute("aria-label", "Rounds of this answer; the arrow keys move between them");
    this.strip.hidden = true;
    this.text = "";
    this.rounds = [];
    this.firsts = []; // of each round: the number of its first token
    this.lengths = []; // of each token's text, in Unicode characters
    this.ends = []; // of each token whose text is here: its end in `text`
    this.roundOf = []; // of each token
    this.letters = ""; // of each token's origin
    this.closed = 0; // the end of the blocks that do not change any more
    this.open = null; // the block after them
    this.shown = 0; // rounds that have a bar
    this.strip.addEventListener("pointerover", (event) => this.light(event.target));
    this.strip.addEventListener("pointerleave", () => this.light(null));
    this.strip.addEventListener("focusin", (event) => this.light(event.target));
    this.strip.addEventListener("focusout", () => this.light(null));
    this.strip.addEventListener("keydown", (event) => this.move(event));
  }

  add(text, round) {
    this.text += text;
    if (!round) return;
    this.firsts.push(this.lengths.length);
    for (const length of round[4]) {
      this.lengths.push(length);
      this.roundOf.push(this.rounds.length);
    }
    this.letters += round[3];
    this.rounds.push(round);
  }

  // Find the ends of the tokens whose text has come. A Unicode character is one or two elements of a string.
  locate() {
    for (let end = this.ends.at(-1) ?? 0; this.ends.length < this.lengths.length; this.ends.push(end)) {
      for (let left = this.lengths[this.ends.length]; left > 0; left--) {
        if (end >= this.text.length) return;
        end += this.text.codePointAt(end) > 0xffff ? 2 : 1;
      }
    }
  }

  textOf(round) {
    const first = this.firsts[round], next = this.firsts[round + 1] ?? this.lengths.length;
    return this.text.slice(first ? this.ends[first - 1] : 0, next ? this.ends[next - 1] : 0);
  }

  // Show what was added. Only the last block is made anew.
  update(seconds) {
    const put = (parent, start, end) => this.put(parent, start, end);
    this.locate();
    for (const [start, end] of blocks(this.text, this.closed)) {
      const block = render(this.text, [start, end], put);
      if (isContinued(this.text, start)) block.classList.add("continued");
      if (this.open) this.open.replaceWith(block);
      else this.body.append(block);
      this.open = block;
      if (end < this.text.length) {
        this.open = null;
        this.closed = end;
      }
    }
    this.figures.textContent = this.rounds.length ? inWords(figuresOf(this.rounds, seconds)) : "";
    this.strip.hidden = !this.rounds.some((round) => round[0] > 0); // nothing was ever proposed
    const bars = document.createDocumentFragment();
    for (; this.shown < this.rounds.length; this.shown++) bars.append(this.bar(this.shown));
    this.strip.append(bars);
  }

  bar(index) {
    const [, accepted, hit, letters] = this.rounds[index];
    const bar = document.createElement("button");
    bar.type = "button";
    bar.tabIndex = index === 0 ? 0 : -1;
    bar.dataset.round = index;
    bar.style.setProperty("--tokens", letters.length);
    bar.className = hit ? "hit" : accepted ? "drafted" : "";
    this.name(bar);
    return bar;
  }

  name(bar) {
    const round = Number(bar.dataset.round);
    bar.title = roundInWords(this.rounds[round], round, this.textOf(round));
    bar.setAttribute("aria-label", bar.title);
  }

  // Characters start..end of the text into a node, a span for each origin in each round.
  put(parent, start, end) {
    let token = this.tokenAt(start);
    while (start < end) {
      let until = end, last = token;
      if (token < this.ends.length) {
        const same = (next) => next < this.ends.length && this.roundOf[next] === this.roundOf[token] && this.letters[next] === this.letters[token];
        while (this.ends[last] < end && same(last + 1)) last += 1;
        until = Math.min(end, Math.max(this.ends[last], start));
      }
      if (until > start) {
        const span = document.createElement("span");
        if (token < this.ends.length) {
          span.className = ORIGINS[this.letters[token]];
          span.dataset.round = this.roundOf[token];
        }
        span.textContent = this.text.slice(start, until);
        parent.append(span);
      }
      start = until;
      token = last + 1;
    }
  }

  // The token that has this character; the number of tokens if none has.
  tokenAt(character) {
    let low = 0, high = this.ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] > character) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  light(bar) {
    for (const lit of this.body.querySelectorAll(".lit")) lit.classList.remove("lit");
    const round = bar?.dataset?.round;
    if (round === undefined) return;
    this.name(bar); // its text may have come later than its tokens
    for (const span of this.body.querySelectorAll(`[data-round="${round}"]`)) span.classList.add("lit");
  }

  move(event) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    const bars = this.strip.children, at = Number(event.target.dataset.round);
    if (!(event.key in steps)) return;
    event.preventDefault();
    const next = bars[Math.max(0, Math.min(bars.length - 1, at + steps[event.key]))];
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}
