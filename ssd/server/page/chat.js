// The chat page: conversations, settings, and the answer that is being streamed.
import { AnswerView, packed } from "./answer.js";
import { card, stream } from "./api.js";
import { fresh, loadConversations, loadSettings, saveConversations, saveSettings } from "./store.js";

const at = (id) => document.getElementById(id);
const make = (name, parent, text = "") => {
  const element = parent.appendChild(document.createElement(name));
  element.textContent = text;
  return element;
};

let conversations = loadConversations(), settings = loadSettings(), current = conversations[0], running = null, model = null;
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];

// Showing ----------------------------------------------------------------------------------------------------------------------

function say(text) {
  at("status").textContent = text;
}

function titleOf(conversation) {
  return conversation.messages[0]?.content.slice(0, 60) || "New chat";
}

function showConversations() {
  at("conversations").replaceChildren();
  for (const conversation of conversations) {
    const button = make("button", make("li", at("conversations")), titleOf(conversation));
    button.type = "button";
    if (conversation === current) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => open(conversation));
  }
}

function showMessages() {
  at("messages").replaceChildren();
  current.messages.forEach((message, index) => showMessage(message, index));
  at("messages").scrollTop = at("messages").scrollHeight;
}

function showMessage(message, index) {
  const article = make("article", at("messages"));
  article.className = `message ${message.role}`;
  make("h3", article, message.role === "user" ? "You" : model?.id ?? "Answer");
  if (message.role === "user") {
    make("div", article, message.content).className = "body";
  } else {
    const answers = make("div", article);
    answers.className = "answers";
    for (const answer of message.answers) showAnswer(answer, answers, message.answers.length > 1);
  }
  const tools = make("div", article);
  tools.className = "tools";
  const tool = (name, act) => {
    const button = make("button", tools, name);
    button.type = "button";
    button.addEventListener("click", act);
  };
  if (message.role === "user") tool("Edit", () => edit(index));
  else if (index === current.messages.length - 1) tool("Regenerate", () => regenerate());
}

function showAnswer(answer, parent, named) {
  const section = make("section", parent);
  if (named) make("h3", section, answer.mode === "ar" ? "Token by token" : "Speculative");
  const view = new AnswerView(section);
  view.add(answer.content, null);
  for (const round of answer.rounds) view.add("", round);
  view.update(answer.seconds);
  if (answer.error) make("p", section, answer.error).className = "error";
  return view;
}

function showSettings() {
  for (const [name, value] of Object.entries(settings)) {
    const field = at("settings").elements[name];
    if (field.type === "checkbox") field.checked = value;
    else field.value = value;
  }
  document.body.classList.toggle("tinted", settings.tints);
}

function save() {
  if (!saveConversations(conversations)) say("This browser's storage is full, so later answers are not kept; export and delete some conversations.");
}

// Acting -----------------------------------------------------------------------------------------------------------------------

function open(conversation) {
  if (running) return say("An answer is being written; stop it first.");
  current = conversation;
  at("side").classList.remove("open");
  at("menu").setAttribute("aria-expanded", "false");
  showConversations();
  showMessages();
  at("prompt").focus();
}

function edit(index) {
  if (running) return say("An answer is being written; stop it first.");
  at("prompt").value = current.messages[index].content;
  current.messages.length = index;
  save();
  showMessages();
  at("prompt").focus();
}

function regenerate() {
  if (running) return;
  current.messages.pop();
  answer();
}

function send() {
  const text = at("prompt").value.trim();
  if (!text || running) return;
  at("prompt").value = "";
  current.messages.push({ role: "user", content: text });
  answer();
}

function requestOf(mode, history) {
  const messages = settings.system ? [{ role: "system", content: settings.system }] : [];
  for (const { role, content } of history) messages.push({ role, content });
  const body = { model: model.id, messages };
  for (const name of NUMBERS) if (settings[name] !== "") body[name] = Number(settings[name]);
  if (mode === "ar") body.mode = "ar";
  return body;
}

async function answer() {
  const history = [...current.messages], modes = settings.compare ? ["ar", null] : [null];
  running = new AbortController();
  const message = { role: "assistant", content: "", answers: [] };
  current.messages.push(message);
  showConversations();
  showMessages();
  at("send").hidden = true;
  at("stop").hidden = false;
  say("The answer is being written.");
  const answers = at("messages").lastElementChild.querySelector(".answers");
  let ended = "The answer is complete.";
  try {
    for (const mode of modes) {
      const one = { mode, content: "", rounds: [], seconds: 0 };
      message.answers.push(one);
      const view = showAnswer(one, answers, modes.length > 1);
      try {
        if (!model) await connect();
        await write(one, requestOf(mode, history), view, message);
      } catch (error) {
        if (running.signal.aborted) throw error;
        one.error = error.message;
        make("p", view.body.parentElement, error.message).className = "error";
        ended = error.message;
        break;
      }
    }
  } catch {
    ended = "The answer was stopped; what came is kept.";
  }
  running = null;
  at("send").hidden = false;
  at("stop").hidden = true;
  save();
  say(ended);
}

// Stream an answer. What the model is told of it later is the last text, so that of the engine's own mode.
async function write(one, body, view, message) {
  const box = at("messages");
  let first = null, frame = 0, saved = performance.now();
  const show = () => {
    frame = 0;
    const follows = box.scrollHeight - box.scrollTop - box.clientHeight < 80;
    view.update(one.seconds);
    if (follows) box.scrollTop = box.scrollHeight;
  };
  try {
    for await (const { text, round } of stream(body, settings.key, running.signal)) {
      const now = performance.now();
      first ??= round ? now : null;
      if (round) one.seconds = (now - first) / 1000;
      const kept = round ? packed(round) : null;
      if (kept) one.rounds.push(kept);
      message.content = one.content += text;
      view.add(text, kept);
      frame ||= requestAnimationFrame(show);
      if (now - saved > 2000) {
        saved = now;
        save();
      }
    }
  } finally {
    cancelAnimationFrame(frame);
    show();
  }
}

async function connect() {
  model = await card(settings.key);
  at("model").textContent = model.id;
}

function exported() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(current, null, 1)], { type: "application/json" }));
  link.download = "conversation.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

function remove() {
  if (running) return say("An answer is being written; stop it first.");
  if (!confirm(`Delete “${titleOf(current)}”?`)) return;
  conversations = conversations.filter((each) => each !== current);
  if (!conversations.length) conversations = [fresh()];
  save();
  open(conversations[0]);
}

// Beginning --------------------------------------------------------------------------------------------------------------------

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
at("stop").addEventListener("click", () => running?.abort());
at("new").addEventListener("click", () => {
  if (running) return say("An answer is being written; stop it first.");
  if (conversations[0].messages.length) conversations.unshift(fresh());
  open(conversations[0]);
});
at("export").addEventListener("click", exported);
at("delete").addEventListener("click", remove);
at("menu").addEventListener("click", () => {
  const isOpen = at("side").classList.toggle("open");
  at("menu").setAttribute("aria-expanded", String(isOpen));
});
at("settings").addEventListener("submit", (event) => event.preventDefault());
at("settings").addEventListener("input", (event) => {
  const { name, type, checked, value } = event.target;
  settings[name] = type === "checkbox" ? checked : value;
  saveSettings(settings);
  showSettings();
});

addEventListener("pagehide", save);

showSettings();
showConversations();
showMessages();
connect().catch((error) => say(error.message));
