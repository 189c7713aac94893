// The page of `scalear app`. It asks its own server alone: /model, /sample, /fit and /complete.

const at = (id) => document.getElementById(id);
const FRAME = 260; // milliseconds that each scale is shown at least
const SEEDS = 2 ** 31;
const MASK = "rgba(255, 64, 96, 0.6)";
const WORDS = {
  "model.guidance.weight": ["Guidance", "How much the class decides; 1 is off"],
  "model.guidance.start_time": ["Guided from", "The time of the flow from which the class decides; 0 is noise"],
  "model.guidance.end_time": ["Guided to", "The time of the flow up to which the class decides; 1 is the picture"],
  "model.sampling.num_steps": ["Steps", "More are finer and slower"],
  "model.sampling.temperature": ["Temperature", "Higher is bolder"],
  "model.sampling.top_p": ["Top-p", "Share of the likely codes that may be taken"],
};

const model = await ask("/model");
const [height, width] = model.image_size;
const chosen = new Set();
const moved = {}; // sliders, by name
let frames = []; // of each scale its pictures, as far as they are there
let making = new AbortController(); // of the request that runs
const canvas = at("canvas");
const mask = new Uint8Array(height * width);
let picture = null; // that is completed: an image element
let last = null; // place of the brush

// Asking

async function ask(path, content) {
  return (await send(path, content)).json();
}

async function send(path, content, signal) {
  const body = content instanceof Blob ? content : JSON.stringify(content);
  const reply = await fetch(path, content === undefined ? {} : { method: "POST", body, signal }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server does not answer. Is `scalear app` still running?");
  });
  if (!reply.ok) throw new Error((await reply.json()).error);
  return reply;
}

async function* lines(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const parts = (rest + (value ?? "")).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
    if (done) return;
  }
}

// Runs something that may fail, and shows why it did.
async function attempt(action) {
  at("message").hidden = true;
  try {
    await action();
  } catch (error) {
    if (error.name === "AbortError") return;
    at("message").textContent = error.message;
    at("message").hidden = false;
    at("status").textContent = "";
  }
}

const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

// Making pictures

function wanted() {
  const labels = [...chosen].sort((one, other) => one - other);
  const count = at("count").valueAsNumber, first = at("seed").valueAsNumber;
  const most = model.max_pictures;
  if (!labels.length) throw new Error("Choose a class first.");
  if (!(count >= 1)) throw new Error("Say how many pictures of each class: 1 or more.");
  if (!(first >= 0)) throw new Error("A seed is a whole number from 0 on.");
  if (labels.length * count > most) {
    throw new Error(`At most ${most} pictures can be made at once: choose fewer classes, or fewer of each.`);
  }
  const seeds = Array.from({ length: count }, (_, number) => (first + number) % SEEDS);
  return { columns: labels.length, cells: seeds.flatMap((seed) => labels.map((label) => ({ label, seed }))) };
}

async function make() {
  const { columns, cells } = wanted();
  making.abort();
  const { signal } = (making = new AbortController());
  at("status").textContent = "Making ...";
  const asked = { labels: cells.map((cell) => cell.label), seeds: cells.map((cell) => cell.seed), settings: moved };
  const reply = await send("/sample", asked, signal);
  frames = [];
  layOut(columns, cells);
  let seconds = 0, pause = null;
  for await (const step of lines(reply)) {
    if (step.error) throw new Error(step.error);
    await pause;
    if (signal.aborted) return;
    frames.push(step.pictures);
    seconds = step.seconds;
    showFrame(frames.length - 1);
    pause = sleep(FRAME);
  }
  at("status").textContent = `${cells.length} made in ${seconds.toFixed(1)} s`;
}

function layOut(columns, cells) {
  const side = columns <= 3 ? 168 : columns <= 5 ? 132 : 96;
  at("pictures").style.gridTemplateColumns = `repeat(${columns}, minmax(0, ${side}px))`;
  at("pictures").replaceChildren(
    ...cells.map((cell) => {
      const figure = document.createElement("figure");
      const image = Object.assign(new Image(), { width, height, alt: `${model.classes[cell.label]}, seed ${cell.seed}` });
      image.classList.toggle("pixels", width < side);
      const caption = document.createElement("figcaption");
      caption.textContent = image.alt;
      if (model.completes) {
        const button = Object.assign(document.createElement("button"), { type: "button", title: "Complete this picture" });
        button.append(image);
        button.onclick = () => attempt(() => take(image.src, cell));
        figure.append(button, caption);
      } else {
        figure.append(image, caption);
      }
      return figure;
    }),
  );
}

function showFrame(number) {
  document.querySelectorAll("#pictures img").forEach((image, place) => (image.src = frames[number][place]));
  showScales(number);
}

function showScales(shown) {
  at("scales").replaceChildren(
    ...model.scales.map((name, number) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
      button.title = `The pictures after scale ${name}`;
      button.setAttribute("aria-pressed", number === shown);
      button.disabled = number >= frames.length;
      button.onclick = () => showFrame(number);
      return button;
    }),
  );
}

// Completing a picture

async function take(url, cell) {
  const image = new Image();
  image.src = url;
  await image.decode();
  picture = image;
  mask.fill(0);
  if (cell) {
    at("shows").value = cell.label;
    at("completion-seed").value = (cell.seed + 1) % SEEDS;
  }
  show(null);
  draw();
  at("completion").scrollIntoView({ block: "nearest", behavior: "smooth" });
}

// Shows the completed picture, or that there is none yet.
function show(url) {
  if (url) at("completed").src = url;
  at("completed").hidden = !url;
  at("completed-hint").hidden = Boolean(url);
  at("keep").disabled = !url;
}

function draw() {
  const pen = canvas.getContext("2d"), size = canvas.width / width;
  pen.imageSmoothingEnabled = false;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (picture) pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  at("canvas-hint").hidden = Boolean(picture);
  pen.fillStyle = MASK;
  mask.forEach((covered, place) => {
    if (covered) pen.fillRect((place % width) * size, Math.floor(place / width) * size, size, size);
  });
}

function paint(event) {
  const box = canvas.getBoundingClientRect();
  const here = [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  const from = last ?? here, steps = Math.ceil(Math.hypot(here[0] - from[0], here[1] - from[1])) || 1;
  for (let step = 1; step <= steps; step++) {
    disc(from[0] + ((here[0] - from[0]) * step) / steps, from[1] + ((here[1] - from[1]) * step) / steps);
  }
  last = here;
  draw();
}

function disc(x, y) {
  const radius = at("brush").valueAsNumber;
  for (let row = Math.max(0, Math.floor(y - radius)); row < Math.min(height, y + radius); row++) {
    for (let column = Math.max(0, Math.floor(x - radius)); column < Math.min(width, x + radius); column++) {
      if (Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius) mask[row * width + column] = 1;
    }
  }
}

async function upload() {
  const [file] = at("upload").files;
  at("upload").value = "";
  if (!file) return;
  if (file.size > model.max_bytes) {
    throw new Error(`The file is too large: ${model.max_bytes >> 20} MB are the most that can be sent.`);
  }
  await take((await ask("/fit", file)).picture);
}

async function complete() {
  if (!picture) throw new Error("Take a picture first: click one that was made, or upload one.");
  if (!mask.includes(1)) throw new Error("Paint over what is to be made up first.");
  at("complete").disabled = at("again").disabled = true;
  try {
    const asked = { picture: picture.src, mask: mask.join(""), label: Number(at("shows").value), settings: moved };
    asked.seed = at("completion-seed").valueAsNumber;
    show((await ask("/complete", asked)).picture);
  } finally {
    at("complete").disabled = at("again").disabled = false;
  }
}

const next = (id, step) => (at(id).value = (at(id).valueAsNumber + step) % SEEDS);

// Building the page from what the server says of the model

function classButton(name, label) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
  const press = () => button.setAttribute("aria-pressed", chosen.has(label));
  button.onclick = () => {
    chosen.has(label) ? chosen.delete(label) : chosen.add(label);
    press();
  };
  press();
  return button;
}

function slider([name, { low, high, value, whole }]) {
  const [title, hint] = WORDS[name] ?? [name.split(".").pop(), ""];
  const label = Object.assign(document.createElement("label"), { className: "slider", title: hint });
  const input = Object.assign(document.createElement("input"), { type: "range", name, min: low, max: high });
  input.step = whole ? 1 : 0.01;
  const output = document.createElement("output");
  const show = (number) => (output.textContent = Number(number.toFixed(2)));
  input.value = value;
  show(value);
  input.oninput = () => show((moved[name] = Math.min(high, Math.max(low, input.valueAsNumber))));
  input.onchange = () => frames.length && attempt(make);
  label.append(title, output, input);
  return label;
}

const real = model.classes.length - 1; // without "no class"
for (let label = 0; label < Math.min(4, real); label++) chosen.add(label);
if (!real) chosen.add(0);
document.title = `scalear: ${model.title}`;
at("model").textContent = `${model.title} makes pictures of ${width}x${height} pixels in ${model.scales.length} scales`;
at("choice").hidden = !real;
at("classes").append(...model.classes.map(classButton));
at("filter").hidden = real <= 24;
at("filter").oninput = () => {
  const text = at("filter").value.toLowerCase();
  for (const button of at("classes").children) button.hidden = !button.textContent.toLowerCase().includes(text);
};
at("sliders").append(...Object.entries(model.sliders).map(slider));
at("sliders-title").hidden = !at("sliders").children.length;
at("count").max = model.max_pictures;
at("make").onclick = () => attempt(make);
at("others").onclick = () => attempt(() => (next("seed", Math.max(1, at("count").valueAsNumber || 1)), make()));
showScales();

if (model.completes) {
  const size = Math.max(1, Math.floor(352 / width));
  Object.assign(canvas, { width: width * size, height: height * size });
  at("completed").classList.toggle("pixels", width < 352);
  for (const stage of document.querySelectorAll(".stage")) stage.style.aspectRatio = `${width} / ${height}`;
  // No smaller than a token, so that what is painted covers one.
  Object.assign(at("brush"), { min: model.stride, max: Math.max(model.stride + 1, width / 3), step: 0.5, value: width / 8 });
  at("shows").append(...model.classes.map((name, label) => new Option(name, label)));
  canvas.onpointerdown = (event) => {
    if (!picture) return;
    canvas.setPointerCapture(event.pointerId);
    last = null;
    paint(event);
  };
  canvas.onpointermove = (event) => canvas.hasPointerCapture(event.pointerId) && paint(event);
  at("clear").onclick = () => (mask.fill(0), draw());
  at("upload").onchange = () => attempt(upload);
  at("complete").onclick = () => attempt(complete);
  at("again").onclick = () => attempt(() => (next("completion-seed", 1), complete()));
  at("keep").onclick = () => attempt(() => take(at("completed").src));
}
at("completion").hidden = !model.completes;
at("no-completion").hidden = model.completes;
