//! JPEG through libjpeg-turbo's TurboJPEG interface, with Pillow's choices: accurate DCT, smooth
//! chroma upsampling, RGB for three components, grey for one, inverted CMYK for four.
//!
//! Source: python-pillow/Pillow (13.0.0) `src/PIL/JpegImagePlugin.py`,
//! `src/libImaging/JpegDecode.c`; libjpeg-turbo 3.1.0 `src/turbojpeg.c`, `src/jerror.h`.
#![allow(unsafe_code, reason = "calls a C library; each call says why it is sound")]

use std::ffi::CStr;

use turbojpeg::raw;

use super::{DecodeError, Image, Limits, Mode};

const FORMAT: &str = "JPEG";

/// A progressive file may refine its image in this many scans. Encoders write about ten; each
/// scan costs a pass over the whole image, so an unbounded number is an attack.
const MAX_SCANS: u32 = 64;

/// What libjpeg-turbo calls a warning and Pillow ignores: the image is complete, a part of it may
/// be wrong. All other messages, "Premature end of JPEG file" first among them, reject the file.
const TOLERATED_WARNINGS: [&str; 5] = [
    "Corrupt JPEG data",
    "Inconsistent progression sequence",
    "Unknown Adobe color transform code",
    "Warning: unknown JFIF revision number",
    "Invalid SOS parameters for sequential JPEG",
];

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Image, DecodeError> {
    let decompressor = Decompressor::new()?;
    let header = decompressor.read_header(bytes)?;
    let permit = limits.admit(FORMAT, u64::from(header.width), u64::from(header.height))?;
    if header.precision != 8 {
        let detail = format!("{} bits a sample", header.precision);
        return Err(DecodeError::Unsupported { format: FORMAT, detail });
    }
    let mut image = Image {
        mode: header.mode,
        width: header.width,
        height: header.height,
        pixels: Vec::new(),
        palette: None,
        transparency: None,
        permit: Some(permit),
    };
    image.pixels = vec![0; image.row_bytes() * image.height as usize];
    decompressor.decompress(bytes, &mut image)?;
    if image.mode == Mode::Cmyk {
        // Pillow reads every four-component JPEG as Adobe's, which store 255 − ink.
        image.pixels.iter_mut().for_each(|ink| *ink = !*ink);
    }
    Ok(image)
}

struct Header {
    width: u32,
    height: u32,
    precision: i32,
    mode: Mode,
}

/// Owns a TurboJPEG handle.
struct Decompressor(raw::tjhandle);

impl Drop for Decompressor {
    fn drop(&mut self) {
        // SAFETY: the handle came from tj3Init, is not null, and is destroyed only here.
        unsafe { raw::tj3Destroy(self.0) }
    }
}

impl Decompressor {
    fn new() -> Result<Self, DecodeError> {
        // SAFETY: tj3Init takes a constant and returns null or a handle that we own.
        let handle = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_DECOMPRESS as i32) };
        if handle.is_null() {
            return Err(corrupt("the decoder cannot be created (out of memory)"));
        }
        let decompressor = Self(handle);
        // SAFETY: the handle is valid; a rejected value would only return −1.
        unsafe {
            raw::tj3Set(handle, raw::TJPARAM_TJPARAM_SCANLIMIT as i32, MAX_SCANS as i32);
        }
        Ok(decompressor)
    }

    fn get(&self, parameter: raw::TJPARAM) -> i32 {
        // SAFETY: the handle is valid; unknown parameters return −1.
        unsafe { raw::tj3Get(self.0, parameter as i32) }
    }

    fn read_header(&self, bytes: &[u8]) -> Result<Header, DecodeError> {
        // SAFETY: the handle is valid, the pointer and length are those of a live slice, which the
        // decoder only reads during the call.
        let status =
            unsafe { raw::tj3DecompressHeader(self.0, bytes.as_ptr(), bytes.len() as raw::size_t) };
        if status != 0 {
            self.check_message(bytes)?;
        }
        let dimension = |parameter| u32::try_from(self.get(parameter)).unwrap_or(0);
        let mode = match u32::try_from(self.get(raw::TJPARAM_TJPARAM_COLORSPACE)) {
            Ok(raw::TJCS_TJCS_GRAY) => Mode::Grey,
            Ok(raw::TJCS_TJCS_RGB | raw::TJCS_TJCS_YCbCr) => Mode::Rgb,
            Ok(raw::TJCS_TJCS_CMYK | raw::TJCS_TJCS_YCCK) => Mode::Cmyk,
            _ => return Err(corrupt("it holds no image")),
        };
        Ok(Header {
            width: dimension(raw::TJPARAM_TJPARAM_JPEGWIDTH),
            height: dimension(raw::TJPARAM_TJPARAM_JPEGHEIGHT),
            precision: self.get(raw::TJPARAM_TJPARAM_PRECISION),
            mode,
        })
    }

    fn decompress(&self, bytes: &[u8], image: &mut Image) -> Result<(), DecodeError> {
        let format = match image.mode {
            Mode::Grey => raw::TJPF_TJPF_GRAY,
            Mode::Cmyk => raw::TJPF_TJPF_CMYK,
            _ => raw::TJPF_TJPF_RGB,
        };
        let row_bytes = image.row_bytes();
        // SAFETY: the handle is valid, the source is a live slice that is only read, and the
        // destination holds height × row_bytes bytes: the dimensions are those that the header of
        // the same bytes gave, and the decoder reads them from there again.
        let status = unsafe {
            raw::tj3Decompress8(
                self.0,
                bytes.as_ptr(),
                bytes.len() as raw::size_t,
                image.pixels.as_mut_ptr(),
                row_bytes as i32,
                format,
            )
        };
        if status == 0 { Ok(()) } else { self.check_message(bytes) }
    }

    /// Rejects the file if the last call's message says so.
    fn check_message(&self, bytes: &[u8]) -> Result<(), DecodeError> {
        // SAFETY: the handle is valid; the string is null-terminated, belongs to the handle and is
        // copied before another call could change it.
        let message = unsafe { CStr::from_ptr(raw::tj3GetErrorStr(self.0)) }.to_string_lossy();
        let message = message.rsplit("): ").next().unwrap_or_default();
        if message.contains("has more than") && message.contains("scans") {
            let limit = u64::from(MAX_SCANS);
            return Err(DecodeError::TooLarge { what: "scan count", found: limit + 1, limit });
        }
        if !TOLERATED_WARNINGS.iter().any(|warning| message.starts_with(warning)) {
            return Err(corrupt(message));
        }
        // Only the first warning is kept, so an early end may hide behind another one.
        if ends_early(bytes) {
            return Err(corrupt("the data ends before the end-of-image marker"));
        }
        Ok(())
    }
}

/// Whether no end-of-image marker follows the first scan's header.
fn ends_early(bytes: &[u8]) -> bool {
    let has_marker = |data: &[u8], code| data.windows(2).position(|pair| pair == [0xff, code]);
    match has_marker(bytes, 0xda) {
        Some(scan) => has_marker(&bytes[scan..], 0xd9).is_none(),
        None => true,
    }
}

fn corrupt(detail: &str) -> DecodeError {
    DecodeError::Corrupt { format: FORMAT, detail: detail.to_owned() }
}
