// Conversations and settings, kept in this browser and nowhere else. The key is kept until the tab is closed.

const CONVERSATIONS = "ssd.conversations", SETTINGS = "ssd.settings", KEY = "ssd.key";

export const DEFAULTS = { system: "", temperature: "0.7", top_p: "", top_k: "", max_tokens: "", seed: "", tints: true, compare: false };

function read(storage, name, otherwise) {
  try {
    return JSON.parse(storage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function loadConversations() {
  const found = read(localStorage, CONVERSATIONS, []);
  return Array.isArray(found) && found.length ? found : [fresh()];
}

export function fresh() {
  return { id: crypto.randomUUID?.() ?? String(Math.random()), messages: [] };
}

// Whether there was room for all of it.
export function saveConversations(conversations) {
  try {
    localStorage.setItem(CONVERSATIONS, JSON.stringify(conversations));
    return true;
  } catch {
    return false;
  }
}

export function loadSettings() {
  return { ...DEFAULTS, ...read(localStorage, SETTINGS, {}), key: sessionStorage.getItem(KEY) ?? "" };
}

export function saveSettings({ key, ...settings }) {
  localStorage.setItem(SETTINGS, JSON.stringify(settings));
  sessionStorage.setItem(KEY, key);
}
