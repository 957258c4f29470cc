"use strict";
// The page: takes an image from wherever the reader has it, and shows what the network makes of it.

const element = (id) => document.getElementById(id);
const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
const run = JSON.parse(element("content").textContent);
for (const each of Object.values(run.network.held)) each.data = float32s(each.data);

/** Little-endian float32s, whatever this device's own order. */
function float32s(base64) {
  const view = new DataView(bytesOf(base64).buffer);
  return Float32Array.from({ length: view.byteLength / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** A Blob or a video's frame -> its prediction, its bytes, and the milliseconds that reading and computing took. */
async function classify(source) {
  const start = performance.now();
  const bytes = await networkInput(source, run.network.shape);
  const read = performance.now();
  const prediction = predict(run.network, bytes);
  if (prediction.confidences.some(Number.isNaN)) throw new RangeError("the network gives it scores that are not finite, so no class");
  return { ...prediction, bytes, reading: read - start, computing: performance.now() - read };
}

// --- showing -------------------------------------------------------------------------------------------------------------------

const percent = (confidence) => `${(100 * confidence).toFixed(2)} %`;

function say(text, isError = false) {
  element("status").textContent = text;
  element("status").className = isError ? "error" : "";
}

function show({ logits, predicted, confidences, bytes, reading, computing }) {
  const context = element("seen").getContext("2d");
  const [channels, size] = run.network.shape;
  const pixels = context.createImageData(size, size);
  for (let at = 0; at < size * size; at++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * at + c] = bytes[(c % channels) * size * size + at];
    pixels.data[4 * at + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  element("save").href = element("seen").toDataURL("image/png");
  const best = [...run.classes.keys()].sort((a, b) => logits[b] - logits[a] || a - b);
  element("bars").replaceChildren(...best.map((index) => bar(run.classes[index], confidences[index])));
  element("time").textContent = `${reading.toFixed(1)} ms to read the picture, ${computing.toFixed(1)} ms to classify it.`;
  element("result").hidden = false;
  say(`${run.classes[predicted]}, ${percent(confidences[predicted])}`);
  element("result").scrollIntoView({ block: "nearest" });
}

function bar(name, confidence) {
  const row = document.createElement("li");
  const [label, track, value] = ["name", "bar", "value"].map((part) => {
    const span = document.createElement("span");
    span.className = part;
    return span;
  });
  label.textContent = label.title = name;
  track.append(document.createElement("span"));
  track.firstChild.style.width = `${100 * confidence}%`;
  track.ariaHidden = "true";
  value.textContent = percent(confidence);
  value.title = String(confidence);
  row.append(label, track, value);
  return row;
}

let latest = 0; // a slow image must not overwrite the one that was asked for after it

async function answer(source, name) {
  const turn = ++latest;
  say("Looking at it…");
  try {
    const answered = await classify(source);
    if (turn === latest) show(answered);
  } catch (error) {
    if (turn !== latest) return;
    element("result").hidden = true;
    const reason = error instanceof RangeError ? error.message : "this browser cannot read it as an image";
    say(`${name}: ${reason}.`, true);
  }
}

function answerFirst(files) {
  if (files.length) answer(files[0], files[0].name || "The image");
  else say("There is no image file in that.", true);
}

// --- choosing, dropping, pasting ---------------------------------------------------------------------------------------------------

for (const input of [element("file"), element("photo")]) {
  input.addEventListener("change", () => {
    if (input.files.length) answerFirst(input.files);
    input.value = ""; // so that the same file can be chosen again
  });
}
element("choose").addEventListener("click", () => element("file").click());

addEventListener("dragover", (event) => {
  event.preventDefault();
  element("drop").classList.add("over");
});
addEventListener("dragleave", () => element("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  element("drop").classList.remove("over");
  answerFirst(event.dataTransfer.files);
});
addEventListener("paste", (event) => answerFirst(event.clipboardData.files));

// --- the camera --------------------------------------------------------------------------------------------------------------------

function stopCamera() {
  for (const track of element("video").srcObject?.getTracks() ?? []) track.stop();
  element("video").srcObject = null;
  element("viewfinder").hidden = true;
  element("camera").hidden = false;
}

element("camera").addEventListener("click", async () => {
  if (!navigator.mediaDevices?.getUserMedia) {
    element("photo").click(); // a page that was opened from a phone's files: its camera app takes the picture
    return;
  }
  try {
    element("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    element("viewfinder").hidden = false;
    element("camera").hidden = true;
    await element("video").play();
    element("take").focus();
  } catch {
    stopCamera();
    say("The camera cannot be used: there is none, or this page may not use it.", true);
  }
});
element("take").addEventListener("click", () => answer(element("video"), "The picture"));
element("stop").addEventListener("click", () => {
  stopCamera();
  element("camera").focus();
});

// --- the self-test -------------------------------------------------------------------------------------------------------------------

/** Read and classify a picture whose bytes and confidences are known: says whether this browser gives the right bits. */
async function selfTest() {
  const known = run.selfTest;
  const answered = await classify(new Blob([bytesOf(known.picture)], { type: "image/png" })).catch(() => null);
  const equal = (a, b) => a.length === b.length && a.every((value, i) => Object.is(value, b[i]));
  const passed = answered && equal(answered.confidences, float32s(known.confidences));
  element("self-test").textContent = passed
    ? "Self-test passed: this browser reads a known picture and gives its confidences, bit for bit."
    : `Self-test failed: this browser ${answered && equal(answered.bytes, bytesOf(known.bytes)) ? "computes other bits" : "changes the pixels of a picture"}.`;
  element("self-test").className = passed ? "" : "error";
  document.documentElement.dataset.selfTest = passed ? "passed" : "failed";
}
selfTest();
