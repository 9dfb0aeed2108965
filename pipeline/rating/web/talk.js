// Requests that are sent again until the server answers: an answer is kept there once.

const FIRST_MS = 400;
const LONGEST_MS = 8000;

export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * What the server says, as JSON.
 * @param waiting is told whether the server is out of reach.
 * Throws Refusal where it says no.
 */
export async function ask(path, { body, headers = {}, waiting = () => {} } = {}) {
  for (let wait = FIRST_MS; ; wait = Math.min(2 * wait, LONGEST_MS)) {
    let answer = null;
    let said = null;
    try {
      answer = await fetch(path, {
        method: body === undefined ? "GET" : "POST",
        headers: body === undefined ? headers : { ...headers, "Content-Type": "application/json" },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
      said = await answer.json();
    } catch {
      // the network, or a server that is started again: it may have been ended in the middle of its answer
    }
    if (answer?.ok && said) {
      waiting(false);
      return said;
    }
    if (answer && !answer.ok && answer.status < 500 && answer.status !== 429) {
      waiting(false);
      throw new Refusal(answer.status, said?.detail?.message ?? "the server refused");
    }
    waiting(true);
    await pause(wait);
  }
}
