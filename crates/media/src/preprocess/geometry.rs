//! Where the resized image and the network's input overlap.

use crate::decode::{Image, Mode};
use crate::resize::Window;

/// The visible part of the resized image, and the position (column, row) of its first pixel in a
/// square of `size` pixels. A side that is too long is cropped at its centre; one that is too short
/// is centred, with the larger half of the padding before it (`center_crop` of transformers).
pub(super) fn crop_or_pad(resized: (u32, u32), size: u32) -> (Window, (u32, u32)) {
    let axis = |length: u32| match length.checked_sub(size) {
        Some(rest) => (rest / 2, size, 0),
        None => (0, length, (size - length).div_ceil(2)),
    };
    let ((left, width, column), (top, height, row)) = (axis(resized.0), axis(resized.1));
    (Window { left, top, width, height }, (column, row))
}

/// The image in a square of `size` pixels of the value `fill`, its first pixel at `position`.
pub(super) fn padded(image: Image, position: (u32, u32), size: u32, fill: u8) -> Image {
    if (image.width(), image.height()) == (size, size) {
        return image;
    }
    let channels = image.mode().bytes_per_pixel();
    let pixel = match image.mode() {
        Mode::Bilevel => vec![if fill == 0 { 0 } else { 255 }],
        // Little-endian, so the low byte first.
        Mode::Grey16 => vec![fill, 0],
        _ => vec![fill; channels],
    };
    let row = size as usize * channels;
    let mut pixels = pixel.repeat(size as usize * size as usize);
    let start = position.1 as usize * row + position.0 as usize * channels;
    let targets = pixels[start..].chunks_mut(row);
    for (target, source) in targets.zip(image.pixels().chunks_exact(image.row_bytes())) {
        target[..source.len()].copy_from_slice(source);
    }
    image.with_pixels(size, size, pixels)
}
