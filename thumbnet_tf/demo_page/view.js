// What the page shows. Texts are set as text, never as HTML.

const BEST = 5; // labels shown
const $ = (id) => document.getElementById(id);

const integer = new Intl.NumberFormat('en', {maximumFractionDigits: 0});
const factor = new Intl.NumberFormat('en', {maximumSignificantDigits: 2});
const milliseconds = (value) => `${value.toFixed(value < 10 ? 2 : 1)} ms`;

/** Sets the line of state; `state` is also the body's `data-state`. */
export function showStatus(text, state) {
  $('status').textContent = text;
  $('error').hidden = true;
  document.body.dataset.state = state;
}

/** Shows what went wrong, in place of a result. */
export function showError(error) {
  showStatus('', 'error');
  $('error').textContent = error.message || String(error);
  $('error').hidden = false;
  $('result').hidden = true;
}

/** Returns which TFLite files run: T's is float32 whatever E's and S' are. */
export function networks(variant, hasTeacher) {
  return hasTeacher && variant !== 'float32' ? `E and S ${variant}, T float32` : variant;
}

/** Shows the result of a photo, as `app.js` makes it, and returns the label from the thumbnail. */
export function show({labels, photo, images, student, teacher, runs, times, bytes}) {
  draw($('crop'), images.full);
  draw($('enlarged'), images.thumbnail);
  draw($('thumbnail'), images.thumbnail);
  const square = (image) => `${image.width} × ${image.height} px`;
  say('full', square(images.full));
  say('thumbnail', square(images.thumbnail));
  say('runs', runs);
  const label = answer('student', labels, student);
  $('teacher').hidden = !teacher;
  if (teacher) answer('teacher', labels, teacher);

  const both = times.downscaler + times.classifier;
  const faster = () => `${factor.format(times.teacher / both)} times faster`;
  rows($('times'), [
    teacher && ['T on the full image', '', milliseconds(times.teacher)],
    ['E + S', teacher && both > 0 && times.teacher > both ? faster() : '', milliseconds(both), true],
    ['E, the thumbnail', '', milliseconds(times.downscaler)],
    ['S on the thumbnail', '', milliseconds(times.classifier)],
  ]);
  const fewer = (count) => (bytes.full > count ? `${factor.format(bytes.full / count)} times fewer than the crop` : '');
  rows($('bytes'), [
    photo.bytes !== null && [`Photo, ${photo.width} × ${photo.height} px`, '', integer.format(photo.bytes)],
    ['Crop as JPEG 85', '', integer.format(bytes.full)],
    ['Thumbnail as PNG', fewer(bytes.png), integer.format(bytes.png), true],
    ['Thumbnail as JPEG 85, 4:2:0', fewer(bytes.jpeg), integer.format(bytes.jpeg)],
  ]);
  $('result').hidden = false;
  return label;
}

function draw(canvas, image) {
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext('2d').putImageData(image, 0, 0);
}

function say(name, text) {
  for (const element of document.querySelectorAll(`[data-of="${name}"]`)) element.textContent = text;
}

/** Shows the best labels with their scores, in full in `data-score`, and returns the best. */
function answer(name, labels, scores) {
  const best = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a]).slice(0, BEST);
  $(`${name}-label`).textContent = labels[best[0]];
  $(`${name}-scores`).replaceChildren(
    ...best.map((index) => {
      const item = element('li', '');
      item.dataset.label = labels[index];
      item.dataset.score = scores[index];
      const bar = element('span', '', 'bar');
      bar.style.width = `${100 * scores[index]}%`;
      item.append(bar, element('span', labels[index]), element('span', `${(100 * scores[index]).toFixed(1)} %`, 'number'));
      return item;
    }),
  );
  return labels[best[0]];
}

/** Fills a table's body with rows of a name, a remark, a value, and whether it stands out. */
function rows(body, items) {
  const lines = items.filter(Boolean).map(([name, remark, value, strong]) => {
    const head = element('th', name);
    head.scope = 'row';
    if (remark) head.append(element('br', ''), element('small', remark));
    const line = element('tr', '', strong ? 'strong' : '');
    line.append(head, element('td', value));
    return line;
  });
  body.replaceChildren(...lines);
}

function element(tag, text, kind = '') {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = kind;
  return made;
}
