// Makes a browser show an image as its pixels are stored. `imageOrientation: 'none'` once did, and now turns by EXIF too.

const text = (bytes, at, length) => String.fromCharCode(...bytes.subarray(at, at + length));

/**
 * Takes EXIF out of a JPEG, PNG or WebP file; other files are returned as they are.
 * @param {Uint8Array} file its bytes, which are left alone.
 * @returns {Uint8Array} a file of the same pixels.
 */
export function withoutExif(file) {
  if (file[0] === 0xff && file[1] === 0xd8) return jpeg(file);
  if (text(file, 1, 3) === 'PNG') return png(file);
  if (text(file, 0, 4) === 'RIFF' && text(file, 8, 4) === 'WEBP') return webp(file);
  return file;
}

function jpeg(file) {
  const result = file.slice();
  const view = new DataView(result.buffer);
  let at = 2;
  while (at + 10 < result.length && result[at] === 0xff && result[at + 1] !== 0xda) { // up to the scan
    if (result[at + 1] === 0xff) { // a fill byte
      at += 1;
      continue;
    }
    if (result[at + 1] === 0xe1 && text(result, at + 4, 4) === 'Exif') result.fill(0, at + 4, at + 8);
    at += 2 + view.getUint16(at + 2);
  }
  return result;
}

function png(file) {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const parts = [file.subarray(0, 8)];
  let at = 8;
  while (at + 12 <= file.length) {
    const end = at + 12 + view.getUint32(at);
    if (text(file, at + 4, 4) !== 'eXIf') parts.push(file.subarray(at, end));
    at = end;
  }
  const result = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let to = 0;
  for (const part of parts) {
    result.set(part, to);
    to += part.length;
  }
  return result;
}

function webp(file) {
  const result = file.slice();
  const view = new DataView(result.buffer);
  let at = 12;
  while (at + 8 <= result.length) {
    const size = view.getUint32(at + 4, true);
    if (text(result, at, 4) === 'EXIF') result.set([0x6e, 0x6f, 0x6e, 0x65], at); // "none", which readers skip
    at += 8 + size + (size % 2);
  }
  return result;
}
