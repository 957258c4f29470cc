"use strict";
// exact-3 in JavaScript: from an image's bytes through a recorded network to its prediction, with the bits that docs/exact-numerics.md
// defines: one function a form.
//
// Read it beside that text: the names are the text's. JavaScript's numbers are IEEE 754 float64, each operation rounded once and
// none contracted. Math.fround is the text's f32. A float32 operation is Math.fround of the float64 one: float64 has more than
// twice float32's digits and two bits to spare, so rounding twice gives what rounding once gives for + - * and /.
// Nothing else of Math is used but abs, max, min, floor and ceil, which are exact, and sqrt, which is the processor's, IEEE 754's.

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

// --- tensors -------------------------------------------------------------------------------------------------------------------
// { shape, data }: float32s in row-major order, or the bytes of the images themselves. What `data` holds never changes, so that tensors
// may share it: an operation in place gives its tensor the data of a new one.

const pair = (given) => (Array.isArray(given) ? given : [given, given]);
const product = (sizes) => sizes.reduce((all, size) => all * size, 1);
const startsOf = (sizes) => sizes.map((_, i) => sizes.slice(0, i).reduce((sum, size) => sum + size, 0));
const fromFront = (axis, { shape }) => (axis < 0 ? axis + shape.length : axis);
const changed = (shape, axis, size) => shape.map((own, i) => (i === axis ? size : own));
const stridesOf = (shape) => shape.map((_, axis) => product(shape.slice(axis + 1)));

function tensor(shape, data = new Float32Array(product(shape))) {
  return { shape, data };
}

/** What to compute with: of bytes, byte / 255. */
function floats(x) {
  return x.data instanceof Uint8Array ? tensor(x.shape, Float32Array.from(x.data, (byte) => byte / 255)) : x;
}

/** Where a tensor of that shape stands in another one's data, in row-major order: at offset + the sum of index * stride. */
function places(shape, strides, offset) {
  let all = Int32Array.of(offset);
  shape.forEach((size, axis) => {
    const next = new Int32Array(all.length * size);
    for (let i = 0, at = 0; i < all.length; i++) for (let j = 0; j < size; j++) next[at++] = all[i] + j * strides[axis];
    all = next;
  });
  return all;
}

/** A part of x, or x in another order; it remembers where it stands, for operations in place. */
function part(x, shape, strides, offset = 0) {
  const at = places(shape, strides, offset);
  const data = new x.data.constructor(at.length);
  for (let i = 0; i < at.length; i++) data[i] = x.data[at[i]];
  return { shape, data, whole: x, at };
}

/** x with other data, also in the tensor that it is a part of. */
function replaced(x, data) {
  x.data = data;
  if (x.whole) {
    const all = x.whole.data.slice();
    x.at.forEach((place, i) => (all[place] = data[i]));
    replaced(x.whole, all);
  }
  return x;
}

/** Tensors into a new one filled with `value`, each at an offset for each axis. */
function placed(shape, tensors, offsets, value = 0) {
  const y = tensor(shape);
  y.data.fill(value);
  const strides = stridesOf(shape);
  tensors.forEach(({ shape: inner, data }, i) => {
    const at = places(inner, strides, strides.reduce((sum, stride, axis) => sum + stride * offsets[i][axis], 0));
    for (let k = 0; k < at.length; k++) y.data[at[k]] = data[k];
  });
  return y;
}

// --- grids ---------------------------------------------------------------------------------------------------------------------

const LEAST_MAGNITUDE = powerOfTwo(-40);

/** grid(magnitude(group), 19): NaN if the group holds an Inf or a NaN. */
function unitOf(group) {
  let magnitude = LEAST_MAGNITUDE;
  for (let i = 0; i < group.length; i++) magnitude = Math.max(magnitude, Math.abs(group[i]));
  return Number.isFinite(magnitude) ? powerOfTwo(exponentOf(magnitude) - OPERAND_BITS + 1) : NaN;
}

/** A group of float32 values, or of bytes, as integers (held in float64) times a unit. */
function onGrid(group) {
  if (group instanceof Uint8Array) return { integers: Float64Array.from(group), unit: 1, areBytes: true };
  const [integers, unit] = [new Float64Array(group.length), unitOf(group)];
  for (let i = 0; i < group.length; i++) integers[i] = rint(group[i] / unit);
  return { integers, unit };
}

/** A weight on its one grid, which is made once. */
function weightOnGrid({ data }) {
  if (!weightsOnGrids.has(data)) weightsOnGrids.set(data, onGrid(data));
  return weightsOnGrids.get(data);
}
const weightsOnGrids = new WeakMap();

// --- sums of products --------------------------------------------------------------------------------------------------------------

const TERMS = powerOfTwo(15); // products of two 19-bit integers, whose sum is below 2^53 and so exact in any order

/** The sum of a[k] * b[start + k]. */
function dot(a, b, start, from, to) {
  let sum = 0;
  for (let k = from; k < to; k++) sum += a[k] * b[start + k];
  return sum;
}

/** The sum of a[k] * b[start + k] over all of a, rounded once, to float32. */
function sumOfProducts(a, b, start) {
  if (a.length <= TERMS) return f32(dot(a, b, start, 0, a.length));
  const parts = [];
  for (let from = 0; from < a.length; from += TERMS) parts.push(dot(a, b, start, from, Math.min(from + TERMS, a.length)));
  return parts.some(Number.isNaN) ? NaN : rounded(parts.reduce((sum, each) => sum + BigInt(each), 0n));
}

/** f32 of an integer of any size: what float64 does not hold of it becomes one last bit that is 1, so that it rounds once. */
function rounded(sum) {
  if (Number.isSafeInteger(Number(sum))) return f32(Number(sum));
  const [above, below] = [sum >> 16n, sum & 0xffffn];
  return f32(Number(below ? above | 1n : above)) * powerOfTwo(16);
}

/** f32 of an exact sum -> y: for bytes the division by 255, the units, the bias. */
function finished(sum, x, w, bias, o) {
  const y = x.areBytes ? f32(f32(sum / 255) * w.unit) : f32(sum * f32(x.unit * w.unit));
  return bias ? f32(y + bias.data[o]) : y;
}

/** How many windows stand along an axis. */
function windows(size, kernel, stride, padding, dilation, ceil = false) {
  const left = size + 2 * padding - dilation * (kernel - 1) - 1;
  if (!ceil) return Math.floor(left / stride) + 1;
  const count = Math.ceil(left / stride) + 1;
  return (count - 1) * stride >= size + padding ? count - 1 : count;
}

function conv2d({ input, weight, bias, stride = 1, padding = 0, dilation = 1, groups = 1 }) {
  const [images, , height, width] = input.shape;
  const [outputs, channels, h, v] = weight.shape;
  const [[s0, s1], [d0, d1]] = [pair(stride), pair(dilation)];
  const [p0, p1] = padding === "same" ? [(d0 * (h - 1)) / 2, (d1 * (v - 1)) / 2] : pair(padding === "valid" ? 0 : padding);
  const [rows, columns] = [windows(height, h, s0, p0, d0), windows(width, v, s1, p1, d1)];
  const y = tensor([images, outputs, rows, columns]);
  const [w, terms, ofGroup] = [weightOnGrid(weight), channels * h * v, outputs / groups];
  const window = new Float64Array(terms); // gathered once for all outputs of its group, in the order of the weight
  const size = groups * channels * height * width;
  for (let n = 0; n < images; n++) {
    const x = onGrid(input.data.subarray(n * size, (n + 1) * size));
    for (let group = 0; group < groups; group++) {
      for (let r = 0; r < rows; r++) {
        for (let c = 0; c < columns; c++) {
          let k = 0;
          for (let i = group * channels; i < (group + 1) * channels; i++) {
            for (let a = 0; a < h; a++) {
              const row = r * s0 + a * d0 - p0;
              for (let b = 0; b < v; b++) {
                const column = c * s1 + b * d1 - p1;
                const within = row >= 0 && row < height && column >= 0 && column < width;
                window[k++] = within ? x.integers[(i * height + row) * width + column] : 0;
              }
            }
          }
          for (let o = group * ofGroup; o < (group + 1) * ofGroup; o++) {
            y.data[((n * outputs + o) * rows + r) * columns + c] = finished(sumOfProducts(window, w.integers, o * terms), x, w, bias, o);
          }
        }
      }
    }
  }
  return y;
}

function linear({ input, weight, bias }) {
  const [outputs, inputs] = weight.shape;
  const w = weightOnGrid(weight);
  const y = tensor([...input.shape.slice(0, -1), outputs]);
  for (let at = 0, row = 0; at < y.data.length; row++) {
    const x = onGrid(input.data.subarray(row * inputs, (row + 1) * inputs));
    for (let o = 0; o < outputs; o++) y.data[at++] = finished(sumOfProducts(x.integers, w.integers, o * inputs), x, w, bias, o);
  }
  return y;
}

// --- elementwise: what is stored in a Float32Array is rounded to float32 ------------------------------------------------------------

function each(x, f) {
  const { shape, data } = floats(x);
  const y = tensor(shape);
  for (let i = 0; i < data.length; i++) y.data[i] = f(data[i]);
  return y;
}

/** f of operands that are spread over each other; a number is rounded to float32 first. */
function both(f) {
  return ({ input, other }) => {
    const operands = [input, other].map((x) => (typeof x === "number" ? tensor([], Float32Array.of(x)) : floats(x)));
    const rank = Math.max(...operands.map(({ shape }) => shape.length));
    const shapes = operands.map(({ shape }) => [...Array(rank - shape.length).fill(1), ...shape]);
    const shape = shapes[0].map((size, axis) => (size === 1 ? shapes[1][axis] : size));
    const [a, b] = operands.map((x, i) => {
      if (product(x.shape) === product(shape)) return x.data;
      return part(x, shape, stridesOf(shapes[i]).map((stride, axis) => (shapes[i][axis] === 1 ? 0 : stride))).data;
    });
    const y = tensor(shape);
    for (let i = 0; i < a.length; i++) y.data[i] = f(a[i], b[i]);
    return y;
  };
}

/** S(x) of the text, rounded to float32. */
function sigmoidOf(x) {
  const e = exp(-Math.abs(x));
  return f32((x >= 0 ? 1 : e) / (1 + e));
}

const clamped = (x, low, high) => Math.min(Math.max(x, low), high);
const relu6Of = (x) => clamped(x, 0, 6);
const add = both((a, b) => a + b);
const subtract = both((a, b) => a - b);
const multiply = both((a, b) => a * b);
const divide = both((a, b) => a / (b + 0));
const reverseSubtract = ({ input, other }) => each(subtract({ input, other }), (x) => -x); // rounding is the same on both sides of 0
const relu = ({ input }) => each(input, (x) => (x <= 0 ? 0 : x));
const relu6 = ({ input }) => each(input, relu6Of);
const hardtanh = ({ input, min_val: low = -1, max_val: high = 1 }) => each(input, (x) => clamped(x, f32(low), f32(high)));
const sigmoid = ({ input }) => each(input, sigmoidOf);
const silu = ({ input }) => each(input, (x) => x * sigmoidOf(x));
const hardsigmoid = ({ input }) => each(input, (x) => relu6Of(f32(x + 3)) / 6);
const hardswish = ({ input }) => each(input, (x) => f32(x * relu6Of(f32(x + 3))) / 6);

function batchNorm({ input, running_mean: mean, running_var: variance, weight: gamma, bias: beta, eps = 1e-5 }) {
  const x = floats(input);
  const [images, channels] = x.shape;
  const size = product(x.shape.slice(2));
  const y = tensor(x.shape);
  for (let c = 0; c < channels; c++) {
    const inv = 1 / Math.sqrt(variance.data[c] + eps);
    const a = gamma ? gamma.data[c] * inv : inv;
    const b = f32(beta ? beta.data[c] - mean.data[c] * a : -(mean.data[c] * a));
    const factor = f32(a);
    for (let n = 0; n < images; n++) {
      const first = (n * channels + c) * size;
      for (let i = first; i < first + size; i++) y.data[i] = f32(x.data[i] * factor) + b;
    }
  }
  return y;
}

// --- means and pooling -----------------------------------------------------------------------------------------------------------

/** The tree along an axis of n numbers: float64 [outer, n, inner] -> [outer, inner]. */
function tree(given, outer, n, inner) {
  const [x, y] = [new Float64Array(given), new Float64Array(outer * inner)];
  for (let o = 0; o < outer; o++) {
    const first = o * n * inner;
    for (let left = n; left > 1; ) {
      const half = Math.ceil(left / 2);
      for (let i = 0; i < (left - half) * inner; i++) x[first + i] += x[first + half * inner + i];
      left = half;
    }
    if (n) y.set(x.subarray(first, first + inner), o * inner);
  }
  return y;
}

function mean({ input, dim, keepdim = false }) {
  const x = floats(input);
  const over = [dim].flat().map((axis) => fromFront(axis, x));
  let data = x.data;
  const kept = [...x.shape];
  for (const axis of [...over].sort((a, b) => a - b)) {
    data = tree(data, product(kept.slice(0, axis)), kept[axis], product(kept.slice(axis + 1)));
    kept[axis] = 1;
  }
  const n = product(over.map((axis) => x.shape[axis]));
  return tensor(keepdim ? kept : kept.filter((_, axis) => !over.includes(axis)), Float32Array.from(data, (sum) => sum / n));
}

/** A pooling's windows along both axes. */
function poolingOf(shape, kernel, stride, padding, dilation, ceil) {
  const [k, p, d] = [kernel, padding, dilation].map(pair);
  const s = pair(stride === null || stride.length === 0 ? k : stride);
  return { k, s, p, d, counts: [0, 1].map((i) => windows(shape[2 + i], k[i], s[i], p[i], d[i], ceil)) };
}

/** y[.., r, c] = f(number of the channel's first place, r, c) for x [N, C, H, W]. */
function pooled(x, counts, f) {
  const y = tensor([...x.shape.slice(0, 2), ...counts]);
  const size = x.shape[2] * x.shape[3];
  for (let at = 0, channel = 0; at < y.data.length; channel++) {
    for (let r = 0; r < counts[0]; r++) for (let c = 0; c < counts[1]; c++) y.data[at++] = f(channel * size, r, c);
  }
  return y;
}

function maxPool({ input, kernel_size, stride = null, padding = 0, dilation = 1, ceil_mode = false }) {
  const { shape, data } = floats(input);
  const { k, s, p, d, counts } = poolingOf(shape, kernel_size, stride, padding, dilation, ceil_mode);
  return pooled(input, counts, (first, r, c) => {
    let largest = -Infinity;
    for (let a = 0; a < k[0]; a++) {
      const row = r * s[0] - p[0] + a * d[0];
      for (let b = 0; b < k[1]; b++) {
        const column = c * s[1] - p[1] + b * d[1];
        const within = row >= 0 && row < shape[2] && column >= 0 && column < shape[3];
        if (within) largest = Math.max(largest, data[first + row * shape[3] + column]);
      }
    }
    return largest;
  });
}

/** The mean of a window of x that begins at a row and a column: trees over its rows, then its columns, 0 beyond the edges. */
function windowMean({ shape, data }, first, [row, column], [h, w], m) {
  const window = new Float64Array(h * w);
  for (let a = Math.max(0, -row); a < Math.min(h, shape[2] - row); a++) {
    for (let b = Math.max(0, -column); b < Math.min(w, shape[3] - column); b++) {
      window[a * w + b] = data[first + (row + a) * shape[3] + column + b];
    }
  }
  return tree(tree(window, 1, h, w), 1, w, 1)[0] / m;
}

function avgPool({ input, kernel_size, stride = null, padding = 0, ceil_mode = false, count_include_pad = true, divisor_override }) {
  const x = floats(input);
  const { k, s, p, counts } = poolingOf(x.shape, kernel_size, stride, padding, 1, ceil_mode);
  return pooled(x, counts, (first, ...place) => {
    const starts = [0, 1].map((i) => place[i] * s[i] - p[i]);
    const edges = count_include_pad ? p : [0, 0];
    const counted = starts.map((start, i) => Math.min(start + k[i], x.shape[2 + i] + edges[i]) - Math.max(start, -edges[i]));
    return windowMean(x, first, starts, k, divisor_override ?? product(counted));
  });
}

function adaptiveAvgPool({ input, output_size }) {
  const x = floats(input);
  const counts = pair(output_size).map((size, i) => size ?? x.shape[2 + i]);
  return pooled(x, counts, (first, ...place) => {
    const [starts, ends] = [0, 1].map((more) => place.map((r, i) => ((r + more) * x.shape[2 + i]) / counts[i]));
    const from = starts.map(Math.floor);
    const sizes = ends.map((end, i) => Math.ceil(end) - from[i]);
    return windowMean(x, first, from, sizes, product(sizes));
  });
}

// --- what only moves values ----------------------------------------------------------------------------------------------------------

const same = ({ input }) => input;
const asFloats = ({ input }) => floats(input);
const clone = ({ input }) => tensor(input.shape, input.data);

function reshape({ input, shape }) {
  const known = product(shape.filter((size) => size !== -1));
  return tensor(shape.map((size) => (size === -1 ? input.data.length / known : size)), input.data);
}

function flatten({ input, start_dim = 0, end_dim = -1 }) {
  const [first, last] = [start_dim, end_dim].map((axis) => fromFront(axis, input));
  const { shape } = input;
  return tensor([...shape.slice(0, first), product(shape.slice(first, last + 1)), ...shape.slice(last + 1)], input.data);
}

function permute({ input, dims }) {
  const order = dims.map((axis) => fromFront(axis, input));
  const strides = stridesOf(input.shape);
  return part(input, order.map((axis) => input.shape[axis]), order.map((axis) => strides[axis]));
}

function transpose({ input, dim0, dim1 }) {
  const dims = [...input.shape.keys()];
  const [a, b] = [dim0, dim1].map((axis) => fromFront(axis, input));
  [dims[a], dims[b]] = [b, a];
  return permute({ input, dims });
}

function unsqueeze({ input, dim }) {
  const axis = dim < 0 ? dim + input.shape.length + 1 : dim;
  return tensor([...input.shape.slice(0, axis), 1, ...input.shape.slice(axis)], input.data);
}

/** input[index], of numbers, slices, None (null) and an ellipsis. */
function get({ input, index }) {
  const parts = [index].flat();
  const axes = parts.filter((each) => each !== null && !each.ellipsis).length;
  const rest = Array(input.shape.length - axes).fill({ slice: [null, null, null] });
  const whole = parts.some((each) => each?.ellipsis) ? parts.flatMap((each) => (each?.ellipsis ? rest : [each])) : [...parts, ...rest];
  const strides = stridesOf(input.shape);
  const taken = { shape: [], strides: [], offset: 0 };
  let axis = 0;
  for (const each of whole) {
    if (each === null) {
      taken.shape.push(1);
      taken.strides.push(0);
      continue;
    }
    const [size, stride] = [input.shape[axis], strides[axis++]];
    const within = (given, otherwise) => (given === null ? otherwise : clamped(given < 0 ? given + size : given, 0, size));
    if (typeof each === "number") {
      taken.offset += stride * (each < 0 ? each + size : each);
      continue;
    }
    const [start, stop, step] = [within(each.slice[0], 0), within(each.slice[1], size), each.slice[2] ?? 1];
    taken.offset += stride * start;
    taken.shape.push(Math.max(0, Math.ceil((stop - start) / step)));
    taken.strides.push(stride * step);
  }
  return part(input, taken.shape, taken.strides, taken.offset);
}

/** The parts of those sizes along an axis. */
function split({ input, sizes, dim = 0 }) {
  const axis = fromFront(dim, input);
  const size = input.shape[axis];
  const all = Array.isArray(sizes) ? sizes : Array.from({ length: Math.ceil(size / sizes) }, (_, i) => Math.min(sizes, size - i * sizes));
  const strides = stridesOf(input.shape);
  return startsOf(all).map((start, i) => part(input, changed(input.shape, axis, all[i]), strides, start * strides[axis]));
}

function chunk({ input, chunks, dim = 0 }) {
  return split({ input, sizes: Math.ceil(input.shape[fromFront(dim, input)] / chunks), dim });
}

function cat({ tensors, dim = 0 }) {
  const all = tensors.map(floats);
  const axis = fromFront(dim, all[0]);
  const sizes = all.map(({ shape }) => shape[axis]);
  const [none, shape] = [all[0].shape.map(() => 0), changed(all[0].shape, axis, sizes.reduce((sum, size) => sum + size))];
  return placed(shape, all, startsOf(sizes).map((start) => changed(none, axis, start)));
}

function pad({ input, pad: widths, value }) {
  const x = floats(input);
  const pairs = x.shape.map((_, axis) => [0, 1].map((side) => widths[2 * (x.shape.length - 1 - axis) + side] ?? 0));
  return placed(x.shape.map((size, axis) => size + pairs[axis][0] + pairs[axis][1]), [x], [pairs.map(([before]) => before)], value ?? 0);
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

// --- a recorded network ----------------------------------------------------------------------------------------------------------

const FORMS = {
  conv2d, linear, add, subtract, reverseSubtract, multiply, divide, relu, relu6, hardtanh, sigmoid, silu, hardsigmoid, hardswish, batchNorm,
  mean, maxPool, avgPool, adaptiveAvgPool, same, asFloats, clone, reshape, flatten, permute, transpose, unsqueeze, get, split, chunk, cat,
  pad,
};

// Of each form what it takes, and PyTorch's names of the operations that it computes. This is JSON, which page.py reads too, to refuse what
// is not in it: `*` marks what may be a tensor, `=` the one value that there is a form for, `...` what takes all arguments that follow.
const OPERATIONS = {
  "conv2d": ["input* weight* bias* stride padding dilation groups", "torch.nn.functional.conv2d"],
  "linear": ["input* weight* bias*", "torch.nn.functional.linear"],
  "add": [
    "input* other* alpha=1",
    "torch.add torch.Tensor.add torch.Tensor.__add__ torch.Tensor.__radd__ torch.Tensor.__iadd__ torch.Tensor.add_"
  ],
  "subtract": ["input* other* alpha=1", "torch.sub torch.Tensor.sub torch.Tensor.__sub__ torch.Tensor.__isub__ torch.Tensor.sub_"],
  "reverseSubtract": ["input* other*", "torch.Tensor.__rsub__"],
  "multiply": [
    "input* other*",
    "torch.mul torch.multiply torch.Tensor.mul torch.Tensor.__mul__ torch.Tensor.__rmul__ torch.Tensor.__imul__ torch.Tensor.mul_"
  ],
  "divide": [
    "input* other* rounding_mode=null",
    "torch.div torch.Tensor.div torch.Tensor.__truediv__ torch.Tensor.__div__ torch.Tensor.__itruediv__ torch.Tensor.div_"
  ],
  "relu": ["input* inplace", "torch.nn.functional.relu torch.relu torch.Tensor.relu torch.Tensor.relu_ torch.nn.functional.relu_"],
  "relu6": ["input* inplace", "torch.nn.functional.relu6"],
  "hardtanh": ["input* min_val max_val inplace", "torch.nn.functional.hardtanh"],
  "sigmoid": ["input*", "torch.sigmoid torch.nn.functional.sigmoid torch.Tensor.sigmoid torch.Tensor.sigmoid_"],
  "silu": ["input* inplace", "torch.nn.functional.silu"],
  "hardsigmoid": ["input* inplace", "torch.nn.functional.hardsigmoid"],
  "hardswish": ["input* inplace", "torch.nn.functional.hardswish"],
  "batchNorm": ["input* running_mean* running_var* weight* bias* training=false momentum eps", "torch.nn.functional.batch_norm"],
  "mean": ["input* dim keepdim dtype=null", "torch.mean torch.Tensor.mean"],
  "maxPool": ["input* kernel_size stride padding dilation ceil_mode return_indices=false", "torch.nn.functional.max_pool2d"],
  "avgPool": ["input* kernel_size stride padding ceil_mode count_include_pad divisor_override", "torch.nn.functional.avg_pool2d"],
  "adaptiveAvgPool": ["input* output_size", "torch.nn.functional.adaptive_avg_pool2d"],
  "same": ["input* memory_format", "torch.Tensor.contiguous"],
  "asFloats": [
    "input* p training=false inplace",
    "torch.nn.functional.dropout torch.dropout torch.nn.functional.dropout1d torch.nn.functional.dropout2d torch.Tensor.float"
  ],
  "clone": ["input* memory_format", "torch.clone torch.Tensor.clone torch.Tensor.detach"],
  "reshape": ["input* shape...", "torch.reshape torch.Tensor.reshape torch.Tensor.view"],
  "flatten": ["input* start_dim end_dim", "torch.flatten torch.Tensor.flatten"],
  "permute": ["input* dims...", "torch.permute torch.Tensor.permute"],
  "transpose": ["input* dim0 dim1", "torch.transpose torch.Tensor.transpose"],
  "unsqueeze": ["input* dim", "torch.unsqueeze torch.Tensor.unsqueeze"],
  "get": ["input* index", "torch.Tensor.__getitem__"],
  "split": ["input* sizes dim", "torch.functional.split torch.Tensor.split"],
  "chunk": ["input* chunks dim", "torch.chunk torch.Tensor.chunk"],
  "cat": ["tensors* dim", "torch.cat torch.concat torch.concatenate"],
  "pad": ["input* pad mode=constant value", "torch.nn.functional.pad"]
};
const OPERATION_OF = new Map(
  Object.entries(OPERATIONS).flatMap(([form, [takes, names]]) => {
    const parameters = takes.split(" ").map((each) => each.replace(/\*$|=.*$/, ""));
    return names.split(" ").map((name) => [name, { form: FORMS[form], parameters, inPlace: /[^_]_$|__i[a-z]+__$/.test(name) }]);
  }),
);

/** An argument of network.json as a form takes it. */
function decoded(given, values, held) {
  if (Array.isArray(given)) return given.map((each) => decoded(each, values, held));
  if (given === null || typeof given !== "object") return given;
  const [[kind, what]] = Object.entries(given);
  if (kind === "value") return [what].flat().reduce((value, place) => value[place], values);
  if (kind === "held") return held[what];
  if (kind === "tuple") return decoded(what, values, held);
  if (kind === "slice") return { slice: decoded(what, values, held) };
  if (kind === "number") return Number(what.replace("inf", "Infinity"));
  return kind === "images" ? what : given; // of one image
}

/** What a call gives. */
function called([name, args, named], values, held) {
  const { form, parameters, inPlace } = OPERATION_OF.get(name);
  const given = {};
  const inOrder = args.map((each) => decoded(each, values, held));
  parameters.forEach((parameter, i) => {
    if (parameter.endsWith("...")) given[parameter.slice(0, -3)] = inOrder.slice(i).flat();
    else if (i < inOrder.length) given[parameter] = inOrder[i];
  });
  for (const [key, value] of Object.entries(named)) given[key] = decoded(value, values, held);
  const y = form(given);
  return inPlace || given.inplace ? replaced(given.input, y.data) : y;
}

/** The float32 logits of one image: bytes [channels, height, width], row-major. A network: { shape, calls, gives, held }. */
function logitsOf({ shape, calls, gives, held }, bytes) {
  const values = [tensor([1, ...shape], bytes)];
  for (const call of calls) values.push(called(call, values, held));
  return [decoded(gives, values, held)].flat().find((logits) => logits !== null).data;
}

/** The prediction of one image: its logits, the class (of equal logits the first) and the float32 probability of each class. */
function predict(network, bytes) {
  const logits = logitsOf(network, bytes);
  const { probabilities } = softmax(logits);
  return { logits, predicted: logits.indexOf(Math.max(...logits)), confidences: Float32Array.from(probabilities) };
}
