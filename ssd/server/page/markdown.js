// A small part of markdown as DOM nodes: paragraphs, headings, lists, quotes, code, emphasis, links to http(s).
//
// A text is never parsed as HTML: every node is made by createElement, and every character ends up in a text node. Each run of
// characters keeps its place in the source, so that `put` can colour it by the token that it came from.

const LINK = /^\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/;
const LONGEST = 2000; // characters of a block that is still rendered anew; a longer one is cut at a space

// The blocks of a text: [start, end) in characters. The last one may still change; the others do not.
export function* blocks(text, from) {
  let start = from;
  while (start < text.length) {
    const end = blockEnd(text, start);
    yield [start, end];
    start = end;
  }
}

function blockEnd(text, start) {
  if (text.startsWith("```", start)) {
    const close = text.indexOf("\n```", start + 3);
    const after = close < 0 ? -1 : text.indexOf("\n", close + 1);
    if (close >= 0) return after < 0 ? text.length : after + 1;
    return cut(text, start, text.length, "\n");
  }
  const blank = /\n[ \t]*\n+|\n(?=```)/g;
  blank.lastIndex = start;
  const found = blank.exec(text);
  return cut(text, start, found ? found.index + found[0].length : text.length, " ");
}

function cut(text, start, end, at) {
  if (end - start <= LONGEST) return end;
  const place = text.indexOf(at, start + LONGEST);
  return place < 0 || place >= end ? (end - start > 2 * LONGEST ? start + 2 * LONGEST : end) : place + 1;
}

// Whether a block goes on where the one before was cut.
export function isContinued(text, start) {
  return start > 0 && !/\n$/.test(text.slice(0, start));
}

export function render(text, [start, end], put) {
  const source = text.slice(start, end).replace(/\s+$/, "");
  if (source.startsWith("```")) return code(source, start, put);
  const lines = [];
  let at = start;
  for (const line of source.split("\n")) {
    lines.push([at, line]);
    at += line.length + 1;
  }
  const heading = /^(#{1,6}) +/.exec(source);
  if (heading && lines.length === 1) {
    return inline(element(`h${Math.min(6, heading[1].length + 3)}`), source.slice(heading[0].length), start + heading[0].length, put);
  }
  for (const [tag, mark] of [["ul", /^ *[-*+] +/], ["ol", /^ *\d+[.)] +/]]) {
    if (lines.every(([, line]) => mark.test(line) || /^ +\S/.test(line)) && mark.test(source)) return list(tag, mark, lines, put);
  }
  if (lines.every(([, line]) => line.startsWith(">"))) {
    const quote = element("blockquote");
    for (const [place, line] of lines) {
      const mark = /^> ?/.exec(line)[0].length;
      inline(quote.appendChild(element("p")), line.slice(mark), place + mark, put);
    }
    return quote;
  }
  const paragraph = element("p");
  lines.forEach(([place, line], index) => {
    if (index) paragraph.append(element("br"));
    inline(paragraph, line, place, put);
  });
  return paragraph;
}

function element(name) {
  return document.createElement(name);
}

function code(source, start, put) {
  const open = source.indexOf("\n") + 1 || source.length;
  const closed = source.lastIndexOf("\n```");
  const end = closed >= open - 1 && closed > 0 ? Math.max(open, closed) : source.length;
  const pre = element("pre"), inside = pre.appendChild(element("code"));
  pre.tabIndex = 0; // so that the keyboard can scroll it
  put(inside, start + open, start + end);
  return pre;
}

function list(tag, mark, lines, put) {
  const whole = element(tag);
  let item = null;
  for (const [place, line] of lines) {
    const found = mark.exec(line);
    if (found) item = whole.appendChild(element("li"));
    else item.append(element("br"));
    const skip = found ? found[0].length : /^ */.exec(line)[0].length;
    inline(item, line.slice(skip), place + skip, put);
  }
  return whole;
}

function inline(parent, source, start, put) {
  let plain = 0, i = 0;
  const flush = () => {
    if (i > plain) put(parent, start + plain, start + i);
  };
  const nested = (tag, open, close, parse) => {
    flush();
    const child = parent.appendChild(element(tag));
    if (parse) inline(child, source.slice(open, close), start + open, put);
    else put(child, start + open, start + close);
    return child;
  };
  while (i < source.length) {
    const here = source[i];
    const strong = source.startsWith("**", i) ? source.indexOf("**", i + 2) : -1;
    const tick = here === "`" ? source.indexOf("`", i + 1) : -1;
    const star = here === "*" && strong < 0 && /\S/.test(source[i + 1] ?? " ") ? source.indexOf("*", i + 1) : -1;
    const link = here === "[" ? LINK.exec(source.slice(i)) : null;
    if (strong > i + 2) {
      nested("strong", i + 2, strong, true);
      plain = i = strong + 2;
    } else if (tick > i + 1) {
      nested("code", i + 1, tick, false);
      plain = i = tick + 1;
    } else if (star > i + 1) {
      nested("em", i + 1, star, true);
      plain = i = star + 1;
    } else if (link) {
      const anchor = nested("a", i + 1, i + 1 + link[1].length, false);
      anchor.href = link[2];
      anchor.rel = "noreferrer noopener";
      anchor.target = "_blank";
      plain = i = i + link[0].length;
    } else {
      i += 1;
    }
  }
  flush();
  return parent;
}
