"use strict";
// exact-2 in JavaScript: from an image's bytes to its prediction, with the bits that docs/exact-numerics.md defines.
//
// Read it beside that text: the names are the text's. JavaScript's numbers are IEEE 754 float64, each operation rounded once and
// none contracted. Math.fround is the text's f32. A float32 operation is Math.fround of the float64 one: float64 has more than
// twice float32's digits and two bits to spare, so rounding twice gives what rounding once gives for + - * and /.
// Nothing else of Math is used but abs, max, floor and trunc, which are exact, and sqrt of the number of pixels.

const f32 = Math.fround;
const OPERAND_BITS = 19;

// --- powers of two, from the bits of a float64 ---------------------------------------------------------------------------------

const float64 = new DataView(new ArrayBuffer(8));
const EXPONENT_BIAS = 1023;

/** 2^e, for e from -1022 to 1023. */
function powerOfTwo(e) {
  float64.setUint32(0, (e + EXPONENT_BIAS) << 20);
  float64.setUint32(4, 0);
  return float64.getFloat64(0);
}

/** The e with 2^e <= x < 2^(e+1), for a positive x that is no subnormal. */
function exponentOf(x) {
  float64.setFloat64(0, x);
  return (float64.getUint32(0) >>> 20) - EXPONENT_BIAS;
}

/** The nearest integer, ties to even, for |x| up to 2^51: from 2^52 to 2^53 the float64s are the integers, so the sum rounds to one. */
function rint(x) {
  return x + ROUNDER - ROUNDER;
}
const ROUNDER = 1.5 * powerOfTwo(52);

// --- grids ---------------------------------------------------------------------------------------------------------------------

const LEAST_MAGNITUDE = powerOfTwo(-40);

/** grid(magnitude(group), 19): NaN if the group holds an Inf or a NaN. */
function unitOf(group) {
  let magnitude = LEAST_MAGNITUDE;
  for (const x of group) magnitude = Math.max(magnitude, Math.abs(x));
  return Number.isFinite(magnitude) ? powerOfTwo(exponentOf(magnitude) - OPERAND_BITS + 1) : NaN;
}

/** A group of float32 values as integers (held in float64) times a unit. */
function onGrid(group) {
  const unit = unitOf(group);
  return { integers: Float64Array.from(group, (x) => rint(x / unit)), unit };
}

/** The bytes of an image: integers already. */
function bytesOnGrid(bytes) {
  return { integers: Float64Array.from(bytes), unit: 1, areBytes: true };
}

// --- layers: x is one image's input on its grid, the layer a weight on its grid and a bias; the results are float32 --------------

/** The exact sum of an output -> its float32: the rounding, for bytes the division by 255, the units, the bias. */
function finished(sum, x, layer, o) {
  const y = x.areBytes ? f32(f32(f32(sum) / 255) * layer.weight.unit) : f32(f32(sum) * f32(x.unit * layer.weight.unit));
  return f32(y + layer.bias[o]);
}

/** conv2d without padding, stride 1: x [channels, side, side] -> [outputs, side - kernel + 1, side - kernel + 1], row-major. */
function convolution(x, side, layer) {
  const [outputs, channels, kernel] = layer.shape;
  const [inputs, weight] = [x.integers, layer.weight.integers];
  const outSide = side - kernel + 1;
  const y = new Float32Array(outputs * outSide * outSide);
  let at = 0;
  for (let o = 0; o < outputs; o++) {
    for (let row = 0; row < outSide; row++) {
      for (let column = 0; column < outSide; column++) {
        let sum = 0; // of integers, below 2^53: exact in any order
        let w = o * channels * kernel * kernel;
        for (let c = 0; c < channels; c++) {
          for (let i = 0; i < kernel; i++) {
            const start = (c * side + row + i) * side + column;
            for (let j = 0; j < kernel; j++) sum += inputs[start + j] * weight[w++];
          }
        }
        y[at++] = finished(sum, x, layer, o);
      }
    }
  }
  return y;
}

/** linear: x [inputs] -> [outputs]. */
function linear(x, layer) {
  const [outputs, inputs] = layer.shape;
  const weight = layer.weight.integers;
  const y = new Float32Array(outputs);
  for (let o = 0; o < outputs; o++) {
    let sum = 0;
    for (let i = 0; i < inputs; i++) sum += x.integers[i] * weight[o * inputs + i];
    y[o] = finished(sum, x, layer, o);
  }
  return y;
}

function relu(x) {
  return x.map((value) => Math.max(value, 0));
}

/** max_pool2d with tiles of 2 x 2: x [channels, side, side] -> [channels, side / 2, side / 2]. */
function maxPool(x, channels, side) {
  const outSide = Math.trunc(side / 2);
  const y = new Float32Array(channels * outSide * outSide);
  let at = 0;
  for (let c = 0; c < channels; c++) {
    for (let row = 0; row < outSide; row++) {
      for (let column = 0; column < outSide; column++) {
        const first = (c * side + 2 * row) * side + 2 * column;
        y[at++] = Math.max(x[first], x[first + 1], x[first + side], x[first + side + 1]);
      }
    }
  }
  return y;
}

// --- softmax and loss of an image, in float64 ------------------------------------------------------------------------------------

const LOG2E = 1.4426950408889634;
const LN2_HIGH = 0.693145751953125;
const LN2_LOW = 1.4286068203094173e-6;
const SQRT2 = 1.4142135623730951;
const C = [1, 1, 2, 6, 24, 120, 720, 5040, 40320, 362880, 3628800].map((factorial) => 1 / factorial);
const D = [1, 3, 5, 7, 9, 11, 13, 15, 17].map((odd) => 1 / odd);

/** e^z, for z <= 0. */
function exp(z) {
  const x = Math.max(z, -60);
  const k = rint(x * LOG2E);
  const r = x - k * LN2_HIGH - k * LN2_LOW;
  let y = C[10];
  for (let j = 9; j >= 0; j--) y = y * r + C[j];
  return y * powerOfTwo(k);
}

/** The natural logarithm, for v >= 1. */
function log(v) {
  let k = exponentOf(v);
  let m = v / powerOfTwo(k);
  if (m > SQRT2) {
    m = m / 2;
    k = k + 1;
  }
  const f = (m - 1) / (m + 1);
  const q = f * f;
  let y = D[8];
  for (let j = 7; j >= 0; j--) y = y * q + D[j];
  return k * LN2_HIGH + k * LN2_LOW + y * f * 2;
}

/** For the float32 logits of an image: z, T and the probabilities of the text. */
function softmax(logits) {
  const largest = Math.max(...logits);
  const z = Array.from(logits, (logit) => logit - largest);
  const e = z.map((difference) => rint(exp(difference) * powerOfTwo(40)));
  const total = e.reduce((sum, term) => sum + term); // of integers: exact
  return { z, total, probabilities: e.map((term) => term / total) };
}

/** The loss of an image with that label. */
function lossOf(logits, label) {
  const { z, total } = softmax(logits);
  return log(total * powerOfTwo(-40)) - z[label];
}

// --- SimpleCNN -------------------------------------------------------------------------------------------------------------------

const LAYERS = ["conv1", "conv2", "fc1", "fc2", "fc3"];

/** What prediction needs of a model: each layer's weight on its grid. Tensors: name -> { shape, values: Float32Array }. */
function simpleCNN(tensors) {
  return Object.fromEntries(
    LAYERS.map((name) => {
      const weight = tensors[`${name}.weight`];
      return [name, { shape: weight.shape, weight: onGrid(weight.values), bias: tensors[`${name}.bias`].values }];
    }),
  );
}

/** The float32 logits of one image: bytes [channels, side, side], row-major. */
function logitsOf(model, bytes) {
  let side = Math.trunc(Math.sqrt(bytes.length / model.conv1.shape[1]));
  let x = maxPool(relu(convolution(bytesOnGrid(bytes), side, model.conv1)), 6, side - 4);
  side = Math.trunc((side - 4) / 2);
  x = maxPool(relu(convolution(onGrid(x), side, model.conv2)), 16, side - 4);
  x = relu(linear(onGrid(x), model.fc1));
  x = relu(linear(onGrid(x), model.fc2));
  return linear(onGrid(x), model.fc3);
}

/** The prediction of one image: its logits, the class (of equal logits the first) and the float32 probability of each class. */
function predict(model, bytes) {
  const logits = logitsOf(model, bytes);
  const { probabilities } = softmax(logits);
  return { logits, predicted: logits.indexOf(Math.max(...logits)), confidences: Float32Array.from(probabilities) };
}
