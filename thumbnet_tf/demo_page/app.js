// The page: takes a photo from a file, the clipboard or the camera, and shows what the networks make of it.

import {Model, startRuntime} from './models.js';
import {withoutExif} from './orientation.js';
import {evalCrop} from './preprocess.js';
import {networks, show, showError, showStatus} from './view.js';

const RUNS = 9; // timed runs of each network, after one that isn't
const MAX_PIXELS = 100e6;
const JPEG = {type: 'image/jpeg', quality: 0.85};
const $ = (id) => document.getElementById(id);

let config, models, threads;
let latest = 0; // the newest photo's number: an older one's result is not shown

async function start() {
  const response = await fetch('/config.json');
  if (!response.ok) throw new Error('The server does not answer. Is it still running?');
  config = await response.json();
  threads = await startRuntime();
  const load = (name) => Model.load(`/models/${name}.tflite`, threads);
  models = {downscaler: await load('downscaler'), classifier: await load('classifier')};
  if (config.has_teacher) models.teacher = await load('teacher');
  const mode = threads > 1 ? `${threads} threads` : '1 thread';
  const run = networks(config.variant, config.has_teacher);
  $('runtime').textContent = `LiteRT.js on the CPU, ${mode}; ${run}; ${config.name} version ${config.version}.`;
  for (const id of ['file', 'camera']) $(id).disabled = false;
  showStatus(`Ready. It knows ${config.labels.length} labels.`, 'ready');
}

/** Returns the median time of one run in milliseconds. */
async function timed(run) {
  await run();
  const times = [];
  for (let index = 0; index < RUNS; index++) {
    const before = performance.now();
    await run();
    times.push(performance.now() - before);
  }
  return times.sort((a, b) => a - b)[RUNS >> 1];
}

/** Returns the pixels of an opaque photo as they are in the file: not turned by EXIF, colours not converted. */
async function pixelsOf(source) {
  const stored = source instanceof Blob ? new Blob([withoutExif(new Uint8Array(await source.arrayBuffer()))]) : source;
  const options = {imageOrientation: 'none', colorSpaceConversion: 'none', premultiplyAlpha: 'none'};
  const bitmap = await createImageBitmap(stored, options);
  try {
    if (bitmap.width * bitmap.height > MAX_PIXELS) {
      throw new Error(`The photo is too large. Received: ${bitmap.width} × ${bitmap.height} pixels.`);
    }
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d', {willReadFrequently: true});
    context.drawImage(bitmap, 0, 0);
    return context.getImageData(0, 0, bitmap.width, bitmap.height);
  } finally {
    bitmap.close();
  }
}

/** Returns RGB bytes as an image. */
function imageOf(rgb, size) {
  const image = new ImageData(size, size);
  image.data.fill(255);
  for (let from = 0, to = 0; from < rgb.length; from += 3, to += 4) image.data.set(rgb.subarray(from, from + 3), to);
  return image;
}

/** Returns how many bytes an image takes in an encoding. */
async function encodedBytes(image, options) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  canvas.getContext('2d').putImageData(image, 0, 0);
  return (await canvas.convertToBlob(options)).size;
}

/** Classifies a photo, a Blob or a video, and shows the result. */
async function classify(source) {
  const number = ++latest;
  showStatus('Working …', 'working');
  try {
    const photo = await pixelsOf(source).catch((error) => {
      if (error.name !== 'InvalidStateError' && error.name !== 'EncodingError') throw error;
      throw new Error(`This browser can't read the file as an image. Received: ${source.name || 'no image'}.`);
    });
    const {image_size: size, thumbnail_size: small} = config;
    const rgb = evalCrop(photo.data, photo.width, photo.height, size, config.crop_fraction);
    const thumbnail = await models.downscaler.run(rgb);
    const student = await models.classifier.scores(thumbnail);
    const teacher = models.teacher && (await models.teacher.scores(rgb));
    const images = {full: imageOf(rgb, size), thumbnail: imageOf(thumbnail, small)};
    const result = {
      labels: config.labels,
      photo: {width: photo.width, height: photo.height, bytes: source instanceof Blob ? source.size : null},
      images,
      student,
      teacher,
      runs: RUNS,
      times: {
        downscaler: await timed(() => models.downscaler.run(rgb)),
        classifier: await timed(() => models.classifier.run(thumbnail)),
        teacher: models.teacher && (await timed(() => models.teacher.run(rgb))),
      },
      bytes: {
        full: await encodedBytes(images.full, JPEG),
        png: await encodedBytes(images.thumbnail, {type: 'image/png'}),
        jpeg: await encodedBytes(images.thumbnail, JPEG),
      },
    };
    if (number !== latest) return;
    showStatus(`Done: ${show(result)}.`, 'done');
  } catch (error) {
    if (number === latest) showError(error);
  }
}

// --- where photos come from

function stopCamera() {
  for (const track of $('video').srcObject?.getTracks() ?? []) track.stop();
  $('video').srcObject = null;
  $('video').hidden = $('shoot').hidden = true;
  $('camera').setAttribute('aria-pressed', 'false');
  $('camera').textContent = 'Use the camera';
}

async function startCamera() {
  if (!navigator.mediaDevices) throw new Error('The browser allows the camera on localhost or by HTTPS only.');
  $('video').srcObject = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}}).catch((error) => {
    throw new Error(`The camera can't be used (${error.message}). Allow it, or choose a photo.`);
  });
  $('video').hidden = $('shoot').hidden = false;
  $('camera').setAttribute('aria-pressed', 'true');
  $('camera').textContent = 'Stop the camera';
  await $('video').play();
  $('shoot').focus();
}

/** Takes the first image of a drop or a paste; busy or not, the newest photo wins. */
function take(files) {
  if (!models || !files.length) return;
  stopCamera();
  classify(files[0]);
}

$('file').addEventListener('change', () => {
  take([...$('file').files]);
  $('file').value = ''; // the same file can be chosen again
});
$('camera').addEventListener('click', async () => {
  if ($('video').srcObject) return stopCamera();
  $('camera').disabled = true; // while the browser asks whether it may
  await startCamera().catch(showError);
  $('camera').disabled = false;
});
$('shoot').addEventListener('click', () => classify($('video')));
addEventListener('paste', (event) => take([...event.clipboardData.files]));
addEventListener('dragover', (event) => {
  event.preventDefault();
  $('drop').classList.add('over');
});
addEventListener('dragleave', (event) => event.relatedTarget || $('drop').classList.remove('over'));
addEventListener('drop', (event) => {
  event.preventDefault();
  $('drop').classList.remove('over');
  take([...event.dataTransfer.files]);
});

start().catch(showError);
