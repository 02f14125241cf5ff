// The export's TFLite files in LiteRT.js: raw bytes in, raw bytes or probabilities out.

import {loadAndCompile, loadLiteRt, supportsFeature, Tensor} from '@litertjs/core';

/** Starts the runtime and returns how many threads it may use: several where the browser allows them. */
export async function startRuntime() {
  const wanted = Math.min(4, navigator.hardwareConcurrency || 1);
  const threads = wanted > 1 && self.crossOriginIsolated && (await supportsFeature('threads'));
  await loadLiteRt('/litert/wasm/', {threads});
  return threads ? wanted : 1;
}

/** One TFLite file with one uint8 input of a fixed size, batch 1. */
export class Model {
  /** Loads a file, such as `/models/classifier.tflite`. */
  static async load(url, numThreads) {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url} can't be read (${response.status}); is the server still running?`);
    const bytes = new Uint8Array(await response.arrayBuffer());
    return new Model(await loadAndCompile(bytes, {accelerator: 'wasm', cpuOptions: {numThreads}}));
  }

  constructor(compiled) {
    this.compiled = compiled;
    const [input] = compiled.getInputDetails();
    this.shape = Array.from(input.shape);
    if (input.dtype !== 'uint8') throw new Error(`The model must take uint8 images. Received: ${input.dtype}`);
  }

  /**
   * Runs the model once.
   * @param {Uint8Array} pixels RGB in [0, 255], as many as the input has.
   * @returns {Promise<Uint8Array|Float32Array>} a copy of the output.
   */
  async run(pixels) {
    const input = Tensor.fromTypedArray(pixels, this.shape);
    try {
      const outputs = await this.compiled.run(input);
      const values = (await outputs[0].data()).slice();
      for (const output of outputs) output.delete();
      return values;
    } finally {
      input.delete();
    }
  }

  /** Returns the scores in [0, 1], Float32Array; int8 files give them in steps of 1/256. */
  async scores(pixels) {
    const values = await this.run(pixels);
    return values instanceof Float32Array ? values : Float32Array.from(values, (value) => value / 256);
  }
}
