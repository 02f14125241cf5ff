// The evaluation crop of `thumbnet_tf/preprocess.py`, in the same arithmetic: float32 steps, as TensorFlow takes them.

/** Rounds to the nearest integer, halves to the even one. */
export function roundHalfEven(value) {
  const low = Math.floor(value);
  const rest = value - low;
  if (rest !== 0.5) return rest < 0.5 ? low : low + 1;
  return low % 2 === 0 ? low : low + 1;
}

/**
 * Returns the central square that evaluation cuts.
 * @param {number} width of the image, pixels.
 * @param {number} height of the image, pixels.
 * @param {number} fraction side of the square over the short side, in (0, 1].
 * @returns {{side: number, left: number, top: number}} pixels.
 */
export function centralSquare(width, height, fraction) {
  const short = Math.min(width, height);
  const side = Math.max(1, roundHalfEven(Math.fround(short * Math.fround(fraction))));
  return {side, left: Math.floor((width - side) / 2), top: Math.floor((height - side) / 2)};
}

/** Returns, for each output pixel, the first input pixel that it sees and the weights of those from there on. */
function triangleSpans(inputSize, outputSize) {
  const f = Math.fround;
  const scale = f(outputSize / inputSize);
  const inverse = f(1 / scale);
  const kernelScale = Math.max(inverse, 1); // antialias: the triangle widens when shrinking only
  const oneOverKernelScale = f(1 / kernelScale);
  const clamp = (value) => Math.min(Math.max(value, 0), inputSize - 1);
  const spans = [];
  for (let out = 0; out < outputSize; out++) {
    const sample = f(f(out + 0.5) * inverse);
    const start = clamp(Math.ceil(f(f(sample - kernelScale) - 0.5)));
    const end = clamp(Math.floor(f(f(sample + kernelScale) - 0.5))) + 1;
    const weights = new Float32Array(end - start);
    let sum = 0;
    for (let source = start; source < end; source++) {
      const distance = Math.abs(f(f(f(source + 0.5) - sample) * oneOverKernelScale));
      const weight = distance < 1 ? f(1 - distance) : 0;
      weights[source - start] = weight;
      sum = f(sum + weight);
    }
    const oneOverSum = f(1 / sum);
    for (let index = 0; index < weights.length; index++) weights[index] *= oneOverSum;
    spans.push({start, weights});
  }
  return spans;
}

/**
 * Cuts the central square and resizes it: bilinear, antialiased when shrinking, rounded.
 * @param {Uint8ClampedArray|Uint8Array} rgba pixels of the image, 4 bytes each; alpha is dropped.
 * @param {number} width of the image, pixels.
 * @param {number} height of the image, pixels.
 * @param {number} size side of the result, pixels.
 * @param {number} fraction side of the square over the short side, in (0, 1].
 * @returns {Uint8Array} RGB (size, size, 3) in [0, 255].
 */
export function evalCrop(rgba, width, height, size, fraction) {
  const {side, left, top} = centralSquare(width, height, fraction);
  const spans = triangleSpans(side, size);
  const result = new Uint8Array(size * size * 3);
  const row = new Float32Array(side * 3); // a float32 array rounds each partial sum, as TensorFlow's loop does
  const sum = new Float32Array(3);
  for (let y = 0; y < size; y++) {
    row.fill(0);
    const {start, weights} = spans[y];
    for (let index = 0; index < weights.length; index++) {
      const weight = weights[index];
      let at = ((top + start + index) * width + left) * 4;
      for (let to = 0; to < row.length; to += 3, at += 4) {
        row[to] += Math.fround(weight * rgba[at]);
        row[to + 1] += Math.fround(weight * rgba[at + 1]);
        row[to + 2] += Math.fround(weight * rgba[at + 2]);
      }
    }
    for (let x = 0; x < size; x++) {
      sum.fill(0);
      const {start: first, weights: across} = spans[x];
      for (let index = 0; index < across.length; index++) {
        for (let channel = 0; channel < 3; channel++) {
          sum[channel] += Math.fround(across[index] * row[(first + index) * 3 + channel]);
        }
      }
      for (let channel = 0; channel < 3; channel++) {
        result[(y * size + x) * 3 + channel] = Math.min(255, Math.max(0, roundHalfEven(sum[channel])));
      }
    }
  }
  return result;
}
