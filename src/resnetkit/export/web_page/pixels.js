// Decode an image file to pixels as resnetkit does: upright, with transparency over white.

/** At most this many pixels are read from a canvas at once: some phones limit its size. */
const STRIP = 4_000_000;

/** Decode a Blob. Browsers reject what they cannot read. */
export function bitmapOf(blob) {
  return createImageBitmap(blob, {
    imageOrientation: "from-image",
    premultiplyAlpha: "none",
    colorSpaceConversion: "none",
  });
}

/**
 * Return {data, shape} of a bitmap: uint8 in the order rows, columns, channels.
 *
 * With 4 channels, transparency is kept. With 1, the image is already gray.
 */
export function pixelsOf(bitmap, channels) {
  const { width, height } = bitmap;
  const rows = Math.max(1, Math.min(height, Math.floor(STRIP / width)));
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = rows;
  // A canvas that is read often is kept in main memory, where drawing is exact.
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const data = new Uint8Array(height * width * channels);
  let position = 0;
  for (let top = 0; top < height; top += rows) {
    context.clearRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, -top);
    const rgba = context.getImageData(0, 0, width, Math.min(rows, height - top)).data;
    for (let i = 0; i < rgba.length; i += 4) {
      const alpha = rgba[i + 3];
      if (channels === 4) {
        data.set(rgba.subarray(i, i + 4), position);
      } else {
        for (let c = 0; c < channels; c++) {
          const level = rgba[i + c];
          data[position + c] =
            alpha === 255 ? level : Math.round((level * alpha + 255 * (255 - alpha)) / 255);
        }
      }
      position += channels;
    }
  }
  return { data, shape: [height, width, channels] };
}

/** Return the traits, read from a file's header, that browsers decode in different ways. */
export function traits(file) {
  const isPng = file[0] === 0x89 && file[1] === 0x50;
  const isJpeg = file[0] === 0xff && file[1] === 0xd8;
  return {
    deep: isPng && file[24] === 16, // 16 bits per channel
    alpha: isPng && (file[25] === 4 || file[25] === 6),
    cmyk: isJpeg && jpegChannels(file) === 4,
  };
}

/** Return the number of channels that the frame header of a JPEG states. */
function jpegChannels(file) {
  let position = 2;
  while (position + 9 < file.length && file[position] === 0xff) {
    const marker = file[position + 1];
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) return file[position + 9];
    position += 2 + file[position + 2] * 256 + file[position + 3];
  }
  return undefined;
}
