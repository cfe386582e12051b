// Asks the gateway for a dry run, shows it, and sends the prompt to the chosen model.

const $ = (id) => document.getElementById(id);
const PARTS = {
  learned: "the encoder's similarity of prompt and model",
  memory: "how well the prompt fits the model's earlier prompts",
  words: "how well its words fit the model's domain",
};
const BODIES = {
  openai_chat: ["/v1/chat/completions", (text) => ({ messages: [{ role: "user", content: text }], stream: true })],
  openai_responses: ["/v1/responses", (text) => ({ input: text, stream: true })],
  anthropic_messages: ["/v1/messages", (text) => ({ messages: [{ role: "user", content: text }], max_tokens: 1024, stream: true })],
};
let models = [];

function element(name, text, ...classes) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  made.classList.add(...classes);
  return made;
}

async function call(path, body) {
  const headers = {};
  if ($("key").value) headers.authorization = `Bearer ${$("key").value}`;
  if (body) headers["content-type"] = "application/json";
  const method = body ? "POST" : "GET";
  const response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  if (response.status === 401) $("key-field").hidden = false;
  return response;
}

function problem(text) {
  $("problem").textContent = text ?? "";
  $("problem").hidden = !text;
}

async function errorOf(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `${response.status}: ${text}`;
  }
}

async function listModels() {
  const response = await call("/v1/models");
  if (!response.ok) return problem(await errorOf(response));
  problem();
  models = (await response.json()).data;
  const apis = new Set(models.flatMap((model) => model.apis));
  $("api").replaceChildren(...[...apis].map((api) => new Option(api.replace("_", " "), api)));
  const routed = models.find((model) => model.owned_by === "hubrouter");
  if (routed) $("auto-name").textContent = routed.id;
  chooseAmong([]);
}

// The models that can be sent to: the routed name first, then in the order of the ranking.
function chooseAmong(ranked) {
  const able = models.filter((model) => model.apis.includes($("api").value));
  const place = (model) => {
    if (model.owned_by === "hubrouter") return -1;
    const at = ranked.indexOf(model.id);
    return at < 0 ? ranked.length : at;
  };
  able.sort((a, b) => place(a) - place(b));
  const chosen = $("model").value;
  $("model").replaceChildren(...able.map((model) => new Option(model.id, model.id)));
  if (able.some((model) => model.id === chosen)) $("model").value = chosen;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

// A bar from zero to `value` on a scale from `low` to `high`.
function bar(label, value, low, high, text) {
  const row = element("div", undefined, "bar", label);
  const track = element("div", undefined, "track");
  const at = (x) => (100 * (x - low)) / (high - low || 1);
  const part = element("i", undefined, "part");
  part.style.left = `${at(Math.min(0, value))}%`;
  part.style.width = `${at(Math.max(0, value)) - at(Math.min(0, value))}%`;
  track.append(part);
  if (low < 0) {
    const zero = element("i", undefined, "zero");
    zero.style.left = `${at(0)}%`;
    track.append(zero);
  }
  track.setAttribute("aria-hidden", "true");
  row.append(element("span", label), track, element("span", text, "value"));
  return row;
}

function showRanked(decision) {
  const parts = decision.ranked.flatMap((model) => Object.values(model.parts ?? { learned: model.score }));
  const low = Math.min(0, ...parts);
  const high = Math.max(0, ...parts);
  $("ranked").replaceChildren(...decision.ranked.map((model, place) => {
    const item = element("li");
    const left = element("div");
    const name = element("div", undefined, "name");
    const label = element("label");
    const choice = element("input");
    choice.type = "radio";
    choice.name = "choice";
    choice.value = model.deployments?.[0] ?? model.model;
    choice.addEventListener("change", () => { $("model").value = choice.value; });
    label.append(choice, `${place + 1}. ${choice.value}`);
    name.append(label);
    left.append(name);
    const where = [model.domain, model.family, choice.value === model.model ? null : model.model];
    left.append(element("p", where.filter(Boolean).join(" · "), "quiet"));
    if (model.utility !== undefined) left.append(element("p", `utility ${model.utility.toFixed(2)}`, "quiet"));
    const right = element("div");
    right.append(bar("probability", model.probability, 0, 1, percent(model.probability)));
    const values = Object.entries(model.parts ?? { score: model.score });
    for (const [part, value] of values) right.append(bar(part, value, low, high, value.toFixed(2)));
    item.append(left, right);
    return item;
  }));
  const known = decision.ranked[0]?.parts;
  $("legend").textContent = known
    ? Object.keys(known).map((part) => `${part}: ${PARTS[part] ?? part}`).join("; ") + ". The score is their sum."
    : "";
}

function table(heads, rows) {
  const made = element("table");
  const number = (cell) => typeof cell === "number";
  const head = element("tr");
  heads.forEach((text, at) => {
    const cell = element("th", text);
    cell.scope = "col";
    if (rows.length && number(rows[0][at])) cell.classList.add("number");
    head.append(cell);
  });
  made.createTHead().append(head);
  const body = made.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const cell of row) {
      const made = line.insertCell();
      made.textContent = cell;
      if (number(cell)) made.classList.add("number");
    }
  }
  const scroll = element("div", undefined, "scroll");
  scroll.append(made);
  return scroll;
}

function showExcluded(excluded) {
  $("excluded").replaceChildren(excluded.length
    ? table(["by", "models", "not stated", "by this alone"],
      excluded.map((part) => [part.by, part.models, part.unknown ?? 0, part.alone ?? 0]))
    : element("p", "No model was excluded.", "quiet"));
}

function showSummary(answer) {
  const would = answer.would_send;
  const pairs = [["goes to", would.model ? `${would.model} at ${would.upstream}` : "no model"]];
  if (would.fallback) pairs.push(["because", "the gateway's fallback answers"]);
  if (answer.abstained) pairs.push(["abstained", `${answer.abstained.reason}: ${answer.abstained.detail}`]);
  if (answer.policy) pairs.push(["may answer", `${answer.policy.eligible} models`]);
  if (answer.policy?.fallback) pairs.push(["policy's fallback", answer.policy.fallback]);
  if (answer.confidence) {
    pairs.push(["confidence", `domain ${percent(answer.confidence.domain)}, model ${percent(answer.confidence.model)}`]);
    pairs.push(["out of distribution", percent(answer.confidence.out_of_distribution)]);
  }
  if (answer.runner_up) pairs.push(["runner-up", `${answer.runner_up.model}, ${answer.runner_up.gap.toFixed(2)} behind`]);
  pairs.push(["domains", answer.domains.slice(0, 3).map((d) => `${d.domain} ${percent(d.probability)}`).join(", ") || "none"]);
  pairs.push(["time", `${(answer.timings_us.total / 1000).toFixed(1)} ms for ${answer.tokens} tokens${answer.truncated ? ", cut" : ""}`]);
  $("summary").replaceChildren(...pairs.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  $("served").textContent = `generation ${answer.generation}, ${answer.encoder}, ${answer.precision}`;
}

function show(answer) {
  showSummary(answer);
  showRanked(answer);
  showExcluded(answer.excluded);
  $("near").replaceChildren(
    table(["model", "domain", "distance", "prompts"],
      answer.near_models.map((m) => [m.model, m.domain, Number(m.distance.toFixed(1)), m.prompts])),
    table(["domain", "distance", "prompts"],
      answer.near_domains.map((d) => [d.domain, Number(d.distance.toFixed(1)), d.prompts])),
  );
  $("json").textContent = JSON.stringify(answer, null, 1);
  chooseAmong(answer.ranked.map((model) => model.deployments?.[0] ?? model.model));
  $("sent").textContent = "";
  $("reply").hidden = true;
  $("answer").hidden = false;
}

// Does `job` while the form's button waits.
async function busy(form, job) {
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    problem();
    await job();
  } catch (error) {
    problem(String(error));
  } finally {
    button.disabled = false;
  }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  busy($("ask"), async () => {
    if (!models.length) await listModels();
    const body = { prompt: $("prompt").value, top: Number($("top").value) || 5, api: $("api").value || undefined };
    const response = await call("/v1/route", body);
    if (response.ok) return show(await response.json());
    $("answer").hidden = true;
    problem(await errorOf(response));
  });
});

$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});

$("api").addEventListener("change", () => chooseAmong([]));
$("key").addEventListener("change", listModels);

$("model").addEventListener("change", () => {
  for (const choice of document.getElementsByName("choice")) choice.checked = choice.value === $("model").value;
});

$("send").addEventListener("submit", (event) => {
  event.preventDefault();
  busy($("send"), async () => {
    const [path, body] = BODIES[$("api").value];
    const asked = $("model").value;
    $("sent").textContent = `${asked} is asked ...`;
    $("reply").hidden = true;
    const response = await call(path, { model: asked, ...body($("prompt").value) });
    const routed = response.headers.get("x-hubrouter-model");
    const why = response.headers.get("x-hubrouter-reason");
    $("sent").textContent = routed ? `${response.status}: ${asked} went to ${routed} (${why})` : `${response.status}: ${asked} passed through`;
    $("reply").textContent = "";
    $("reply").hidden = false;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
      $("reply").textContent += piece.value;
    }
  });
});

listModels().catch((error) => problem(String(error)));
