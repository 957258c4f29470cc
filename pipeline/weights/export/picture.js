"use strict";
// An image file -> the bytes that the network sees, by the rule of docs/data.md, from the browser's decoded samples on.

const GREY = [299, 587, 114]; // of 1000
const LARGEST_PIXELS = 2 ** 26;
const TILE = 1024; // pixels read at once in each direction: a canvas of a phone may not hold the whole image
const AS_STORED = { colorSpaceConversion: "none", premultiplyAlpha: "none" };

/** A Blob, or anything else that createImageBitmap takes -> Uint8Array of that shape. Throws where it is no image. */
async function networkInput(source, [channels, size] = [3, 32, 32]) {
  const image = await createImageBitmap(source, { ...AS_STORED, imageOrientation: "from-image" });
  try {
    if (image.width * image.height > LARGEST_PIXELS) throw new RangeError(`more than ${LARGEST_PIXELS.toLocaleString("en")} pixels`);
    return await averaged(image, channels, size);
  } finally {
    image.close();
  }
}

/** The largest square in the middle, on white, each of size x size pixels the average by area of what it covers, rounded half up. */
async function averaged(image, channels, size) {
  const side = Math.min(image.width, image.height);
  const left = Math.floor((image.width - side) / 2);
  const top = Math.floor((image.height - side) / 2);
  const totals = new Float64Array(3 * size * size); // integers, exact: at most 65,025 * side^2
  for (let y = 0; y < side; y += TILE) {
    for (let x = 0; x < side; x += TILE) {
      const [width, height] = [Math.min(TILE, side - x), Math.min(TILE, side - y)];
      const samples = await samplesOf(image, left + x, top + y, width, height);
      addTile(totals, samples, { x, y, width, height }, side, size);
    }
  }
  const whole = 255 * side * side;
  const rounded = (total, of) => Math.floor((2 * total + of) / (2 * of));
  if (channels === 3) return Uint8Array.from(totals, (total) => rounded(total, whole));
  const grey = (_, at) => GREY.reduce((sum, weight, c) => sum + weight * totals[c * size * size + at], 0);
  return Uint8Array.from({ length: size * size }, (_, at) => rounded(grey(_, at), 1000 * whole));
}

/** For pixel j of the square: pairs [i, units] of the result's pixels and what they share, a pixel being size units wide. */
function overlaps(j, side, size) {
  const pairs = [];
  for (let i = Math.floor((size * j) / side); i < size && i * side < size * (j + 1); i++) {
    pairs.push([i, Math.min(size * (j + 1), (i + 1) * side) - Math.max(size * j, i * side)]);
  }
  return pairs;
}

/** Add a tile's part to the sums of the averages. */
function addTile(totals, samples, tile, side, size) {
  const columns = Array.from({ length: tile.width }, (_, x) => overlaps(tile.x + x, side, size));
  const across = new Float64Array(3 * size);
  let at = 0;
  for (let y = 0; y < tile.height; y++) {
    across.fill(0);
    for (let x = 0; x < tile.width; x++, at += 4) {
      const alpha = samples[at + 3];
      const ground = 255 * (255 - alpha); // white
      for (const [i, units] of columns[x]) {
        for (let c = 0; c < 3; c++) across[c * size + i] += units * (samples[at + c] * alpha + ground);
      }
    }
    for (const [i, units] of overlaps(tile.y + y, side, size)) {
      for (let c = 0; c < 3; c++) {
        for (let column = 0; column < size; column++) totals[(c * size + i) * size + column] += units * across[c * size + column];
      }
    }
  }
}

/** The red, green, blue and alpha of a part of an image, as they are stored. */
async function samplesOf(image, left, top, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(image, -left, -top);
  const samples = context.getImageData(0, 0, width, height).data;
  // A 2D canvas multiplies colours by alpha, and so changes those that are not opaque. A texture keeps them.
  if (samples.every((sample, at) => at % 4 !== 3 || sample === 255)) return samples;
  const part = await createImageBitmap(image, left, top, width, height, AS_STORED);
  return samplesOfTexture(part) ?? samples;
}

let graphics; // one context for all images: browsers allow few at a time

function samplesOfTexture(part) {
  graphics ??= new OffscreenCanvas(1, 1).getContext("webgl");
  const gl = graphics;
  if (!gl) return null; // then what is half transparent may be one of 255 off
  const [texture, buffer] = [gl.createTexture(), gl.createFramebuffer()];
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, part);
  gl.bindFramebuffer(gl.FRAMEBUFFER, buffer);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const samples = new Uint8Array(4 * part.width * part.height);
  gl.readPixels(0, 0, part.width, part.height, gl.RGBA, gl.UNSIGNED_BYTE, samples);
  gl.deleteFramebuffer(buffer);
  gl.deleteTexture(texture);
  return samples;
}
