// The server's streams. `stream` yields {text, round, reason} for each chunk of a chat's answer, and throws what the user should read.

export async function* stream(body, key, signal) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch("v1/chat/completions", { method: "POST", headers, signal, body: JSON.stringify({ ...body, stream: true, stream_options: { include_speculation: true } }) });
  } catch (error) {
    throw signal.aborted ? error : new Error("The server cannot be reached; start it, and send again.");
  }
  if (!response.ok) throw new Error(await refusal(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", complete = false;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        if (line === "data: [DONE]") complete = true;
        else yield* parts(JSON.parse(line.slice(6)));
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof Refused) throw error;
  }
  if (!complete) throw new Error("The connection was lost before the answer was complete; what came is kept.");
}

class Refused extends Error {}

function* parts(event) {
  if (event.error) throw new Refused(sentence(event.error.message));
  for (const choice of event.choices) {
    yield { text: choice.delta.content ?? "", round: choice.speculation, reason: choice.finish_reason };
  }
}

async function refusal(response) {
  try {
    return sentence((await response.json()).error.message);
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export async function card(key) {
  const response = await fetch("v1/models", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (!response.ok) throw new Error(await refusal(response));
  return (await response.json()).data[0];
}
