// The browser of trajectories. Whatever a model wrote reaches the page through textContent alone.
const PAGE = 20;

function make(tag, className, ...children) {
  const found = document.createElement(tag);
  if (className) found.className = className;
  found.append(...children.filter(child => child !== null && child !== undefined));
  return found;
}

async function unpack(element) {
  const bytes = Uint8Array.from(atob(element.textContent), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function badge(text, kind) { return make("span", "badge " + kind, text); }

function verdicts(item) {
  const said = item.turns.filter(turn => turn.kind === "verdict");
  return said.map(turn => turn.verdict ? ((turn.verdict === "correct") === turn.right ? "rightly " : "mistakenly ") + turn.verdict : "no verdict");
}

function tokens(turn, vocabulary) {
  const box = make("pre", "");
  turn.ids.forEach((id, index) => {
    const piece = vocabulary[id] ?? "#" + id;
    const token = make("span", "token", piece === "" ? "·" : piece);
    const cost = turn.logprobs[index];
    if (cost !== undefined) {
      token.style.setProperty("--doubt", Math.min(85, cost / 3));
      token.title = `token ${id}, log-probability −${(cost / 100).toFixed(2)}, probability ${(100 * Math.exp(-cost / 100)).toFixed(1)} %`;
    } else token.title = `token ${id}, not sampled`;
    token.title += `, loss weight ${turn.weight ?? 0}`;
    box.append(token);
  });
  return box;
}

function showTurn(turn, vocabulary) {
  const head = make("header", "", make("b", "", turn.kind), " ");
  if (turn.outcome) head.append(badge(turn.outcome, turn.right ? "ok" : "bad"), `answer ${turn.answer ?? "none"} · `);
  else if (turn.verdict) {
    const agrees = (turn.verdict === "correct") === turn.right;
    head.append(badge("says " + turn.verdict, agrees ? "ok" : "bad"), agrees ? "rightly · " : "mistakenly · ");
  } else if (turn.kind === "verdict") head.append(badge("no verdict", "bad"));
  head.append(`${turn.count} tokens`);
  if (turn.logprobs?.length) {
    const sum = turn.logprobs.reduce((total, cost) => total + cost, 0);
    head.append(` · mean log-probability −${(sum / 100 / turn.logprobs.length).toFixed(3)}`);
  }
  if (turn.weight) head.append(` · loss weight ${turn.weight}`);
  const text = make("pre", "", turn.text);
  text.dir = "auto";
  const box = make("div", "turn " + turn.kind, head, text);
  if (turn.ids) {
    const button = make("button", "", "tokens");
    button.type = "button";
    let shown = null;
    button.addEventListener("click", () => {
      if (shown) { shown.remove(); shown = null; text.hidden = false; }
      else { shown = tokens(turn, vocabulary); text.hidden = true; box.append(shown); }
    });
    head.append(" ", button);
  }
  return box;
}

const KINDS = { "right->right": "kept", "right->wrong": "bad", "wrong->right": "ok", "wrong->wrong": "" };

function showItem(item, vocabulary) {
  const question = make("span", "", item.question.slice(0, 100));
  const summary = make("summary", "", badge(item.change.replace("->", " → "), KINDS[item.change]), make("b", "", item.method), " ", question);
  const box = make("details", "trajectory", summary);
  box.addEventListener("toggle", () => {
    if (box.children.length > 1) return;
    const whole = make("p", "", item.question);
    whole.dir = "auto";
    const reward = item.reward === null ? "" : ` · reward ${item.reward}`;
    const facts = make("p", "note", `gold ${item.gold} · stopped: ${item.stop}${reward} · ${item.tokens} tokens · ${item.id}`);
    box.append(whole, facts, ...item.turns.map(turn => showTurn(turn, vocabulary)));
  });
  return box;
}

function chooser(name, values, change) {
  const select = make("select", "", new Option("all", ""), ...values.map(value => new Option(value.replace("->", " → "), value)));
  select.name = name;
  select.addEventListener("change", change);
  return [select, make("label", "", name, select)];
}

function field(type, name, change) {
  const input = make("input", "");
  input.type = type;
  input.name = name;
  input.addEventListener("input", change);
  return [input, make("label", "", name, input)];
}

async function start(element) {
  const data = await unpack(element);
  const list = document.getElementById("list"), form = document.querySelector(".filters");
  let first = 0;
  for (const item of data.items) item.says = verdicts(item);
  const again = () => { first = 0; show(); };
  const [method, methodLabel] = chooser("method", data.methods, again);
  const [change, changeLabel] = chooser("transition", data.transitions, again);
  const words = [...new Set(data.items.flatMap(item => item.says))].sort();
  const [verdict, verdictLabel] = chooser("verdict", words, again);
  const [least, leastLabel] = field("number", "tokens from", again);
  const [most, mostLabel] = field("number", "to", again);
  const [text, textLabel] = field("search", "text", again);
  const count = make("span", "note");
  form.append(methodLabel, changeLabel, verdictLabel, leastLabel, mostLabel, textLabel, count);
  form.hidden = false;
  form.addEventListener("submit", event => event.preventDefault());
  const back = make("button", "", "← back"), on = make("button", "", "more →"), place = make("span", "note");
  const pages = make("div", "pages", back, place, on);
  list.after(pages);
  back.addEventListener("click", () => { first -= PAGE; show(); });
  on.addEventListener("click", () => { first += PAGE; show(); });

  function fits(item) {
    const wanted = text.value.toLowerCase();
    return (!method.value || item.method === method.value) && (!change.value || item.change === change.value)
      && (!verdict.value || item.says.includes(verdict.value))
      && (!least.value || item.tokens >= +least.value) && (!most.value || item.tokens <= +most.value)
      && (!wanted || item.question.toLowerCase().includes(wanted) || item.turns.some(turn => turn.text.toLowerCase().includes(wanted)));
  }

  function show() {
    const found = data.items.filter(fits);
    const here = found.slice(first, first + PAGE);
    list.replaceChildren(...here.map(item => showItem(item, data.vocabulary)));
    count.textContent = `${found.length.toLocaleString("en")} found`;
    place.textContent = here.length ? `${first + 1} to ${first + here.length}` : "";
    back.disabled = first === 0;
    on.disabled = first + PAGE >= found.length;
  }
  show();
  document.documentElement.dataset.ready = Math.round(performance.now());
}

const packed = document.getElementById("trajectories");
if (packed && "DecompressionStream" in window) start(packed);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(item => { item.open = true; }));
