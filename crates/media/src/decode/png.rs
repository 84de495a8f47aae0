//! PNG, unpacked to Pillow's modes: 16-bit colour keeps its high bytes, 16-bit grey stays 16-bit
//! (`I;16`), 16-bit grey with alpha becomes RGBA, fewer than 8 bits of grey are scaled to 8.
//!
//! Source: python-pillow/Pillow (13.0.0) `src/PIL/PngImagePlugin.py` (`_MODES`),
//! `src/libImaging/Unpack.c`. A file that Pillow reads and the decoder rejects is rebuilt first
//! ([`png_chunks`]).

use std::io::Cursor;

use png::{BitDepth, ColorType, DecodeOptions, Decoder, DecodingError, Transformations};

use super::{DecodeError, Image, Limits, Mode, Palette, Transparency, png_chunks};

const FORMAT: &str = "PNG";

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Image, DecodeError> {
    let error = match decode_whole(bytes, limits) {
        Err(error @ DecodeError::Corrupt { .. }) => error,
        other => return other,
    };
    match png_chunks::rebuilt(bytes, limits) {
        Some((rebuilt, _share)) => decode_whole(&rebuilt, limits).map_err(|_| error),
        None => Err(error),
    }
}

fn decode_whole(bytes: &[u8], limits: &Limits) -> Result<Image, DecodeError> {
    let mut options = DecodeOptions::default();
    options.set_ignore_text_chunk(true);
    options.set_ignore_iccp_chunk(true);
    let mut decoder = Decoder::new_with_options(Cursor::new(bytes), options);
    decoder.set_transformations(Transformations::IDENTITY);

    let header = decoder.read_header_info().map_err(error)?;
    let (width, height) = (header.width, header.height);
    let permit = limits.admit(FORMAT, u64::from(width), u64::from(height))?;

    let mut reader = decoder.read_info().map_err(error)?;
    let size = reader.output_buffer_size().ok_or_else(|| corrupt("its size overflows"))?;
    let mut packed = vec![0; size];
    let frame = reader.next_frame(&mut packed).map_err(error)?;
    if (frame.width, frame.height) != (width, height) {
        return Err(corrupt("its first frame does not fill the image"));
    }
    let rows = packed.chunks_exact(frame.line_size).take(height as usize);
    let mode = mode(frame.color_type, frame.bit_depth);
    let pixels = match (frame.color_type, frame.bit_depth) {
        (_, BitDepth::Eight) => packed,
        (ColorType::Grayscale, BitDepth::Sixteen) => {
            packed.as_chunks().0.iter().flat_map(|&[high, low]| [low, high]).collect()
        }
        (ColorType::GrayscaleAlpha, BitDepth::Sixteen) => {
            let rgba = |&[grey, _, alpha, _]: &[u8; 4]| [grey, grey, grey, alpha];
            packed.as_chunks().0.iter().flat_map(rgba).collect()
        }
        (_, BitDepth::Sixteen) => packed.into_iter().step_by(2).collect(),
        (color_type, depth) => {
            // Below 8 bits: grey is scaled to the full range, indices stay as they are.
            let bits = depth as u32;
            let scale = if color_type == ColorType::Indexed { 1 } else { 255 / ((1 << bits) - 1) };
            rows.flat_map(|row| unpack_row(row, bits, scale).take(width as usize)).collect()
        }
    };
    let palette = (mode == Mode::Palette).then(|| palette(reader.info().palette.as_deref()));
    let transparency = transparency(mode, png_chunks::transparency(bytes));
    let permit = Some(permit);
    let image = Image { mode, width, height, pixels, palette, transparency, permit };
    if image.pixels.len() != image.row_bytes() * height as usize {
        return Err(corrupt("its rows do not fill the image"));
    }
    Ok(image)
}

const fn mode(color_type: ColorType, depth: BitDepth) -> Mode {
    match (color_type, depth) {
        (ColorType::Grayscale, BitDepth::One) => Mode::Bilevel,
        (ColorType::Grayscale, BitDepth::Sixteen) => Mode::Grey16,
        (ColorType::Grayscale, _) => Mode::Grey,
        (ColorType::Indexed, _) => Mode::Palette,
        (ColorType::Rgb, _) => Mode::Rgb,
        (ColorType::GrayscaleAlpha, BitDepth::Eight) => Mode::GreyAlpha,
        (ColorType::GrayscaleAlpha | ColorType::Rgba, _) => Mode::Rgba,
    }
}

/// Samples of a packed row, most significant bits first, each times `scale`.
fn unpack_row(row: &[u8], bits: u32, scale: u8) -> impl Iterator<Item = u8> + '_ {
    let mask = ((1_u16 << bits) - 1) as u8;
    row.iter().flat_map(move |&byte| {
        (0..8 / bits).map(move |sample| (byte >> (8 - bits * (sample + 1)) & mask) * scale)
    })
}

/// The file's colours; entries it leaves out are black.
fn palette(entries: Option<&[u8]>) -> Box<Palette> {
    let mut palette = Box::new([[0; 3]; 256]);
    let entries = entries.unwrap_or_default().as_chunks().0;
    for (slot, entry) in palette.iter_mut().zip(entries) {
        *slot = *entry;
    }
    palette
}

/// The `tRNS` chunk: an alpha for each entry of a palette, else two bytes a channel; Pillow
/// compares the low ones.
fn transparency(mode: Mode, chunk: Option<&[u8]>) -> Option<Transparency> {
    let chunk = chunk?;
    let low = |channel: usize| chunk.get(2 * channel + 1).copied();
    Some(match mode {
        Mode::Palette => {
            let mut alphas = Box::new([255; 256]);
            alphas.iter_mut().zip(chunk).for_each(|(alpha, &stated)| *alpha = stated);
            Transparency::Palette(alphas)
        }
        Mode::Bilevel => {
            let black = chunk.first_chunk::<2>()? == &[0, 0];
            Transparency::Colour([if black { 0 } else { 255 }; 3])
        }
        Mode::Grey | Mode::Grey16 => Transparency::Colour([low(0)?; 3]),
        Mode::Rgb => Transparency::Colour([low(0)?, low(1)?, low(2)?]),
        Mode::GreyAlpha | Mode::Rgba | Mode::Cmyk => return None,
    })
}

fn corrupt(detail: &str) -> DecodeError {
    DecodeError::Corrupt { format: FORMAT, detail: detail.to_owned() }
}

/// Keeps the decoder's own words.
#[expect(clippy::needless_pass_by_value, reason = "it is the argument of map_err")]
fn error(error: DecodingError) -> DecodeError {
    corrupt(&error.to_string())
}
