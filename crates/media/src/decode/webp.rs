//! WebP through libwebp's animation decoder, as Pillow uses it for still images too: RGBA if the
//! file has alpha, else RGB; the first frame of an animation, on its canvas.
//!
//! Source: python-pillow/Pillow (13.0.0) `src/PIL/WebPImagePlugin.py`, `src/_webp.c`
//! (`_anim_decoder_new`, `_anim_decoder_get_next`).
#![allow(unsafe_code, reason = "calls a C library; each call says why it is sound")]

use std::mem::MaybeUninit;
use std::ptr;

use libwebp_sys as raw;

use super::{DecodeError, Image, Limits, Mode};

const FORMAT: &str = "WebP";

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Image, DecodeError> {
    if !matches!(bytes.get(12..16), Some(b"VP8 " | b"VP8L" | b"VP8X")) {
        return Err(corrupt("its first chunk is not VP8, VP8L or VP8X"));
    }
    let features = features(bytes)?;
    let dimension = |value| u64::try_from(value).unwrap_or(0);
    let stated = [dimension(features.width), dimension(features.height)];
    let mut permit = limits.admit(FORMAT, stated[0], stated[1])?;

    let decoder = AnimationDecoder::new(bytes)?;
    let (width, height) = decoder.canvas()?;
    // The container's canvas need not be what the first bytes promised.
    if [u64::from(width), u64::from(height)] != stated {
        permit = limits.admit(FORMAT, u64::from(width), u64::from(height))?;
    }
    let rgba = decoder.first_frame(width, height)?;
    let (mode, pixels) = if features.has_alpha == 0 {
        let opaque = rgba.as_chunks().0.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect();
        (Mode::Rgb, opaque)
    } else {
        (Mode::Rgba, rgba.to_vec())
    };
    Ok(Image {
        mode,
        width,
        height,
        pixels,
        palette: None,
        transparency: None,
        permit: Some(permit),
    })
}

fn features(bytes: &[u8]) -> Result<raw::WebPBitstreamFeatures, DecodeError> {
    let mut features = MaybeUninit::zeroed();
    // SAFETY: pointer and length are those of a live slice that is only read; `features` is a plain
    // C struct of integers for which zero is valid, and is written only by the call.
    let (status, features) = unsafe {
        let status = raw::WebPGetFeatures(bytes.as_ptr(), bytes.len(), features.as_mut_ptr());
        (status, features.assume_init())
    };
    if status == raw::VP8StatusCode::VP8_STATUS_OK {
        Ok(features)
    } else {
        Err(corrupt(&format!("its header cannot be read ({status:?})")))
    }
}

/// Owns a decoder; it reads the bytes as long as it lives.
struct AnimationDecoder<'bytes> {
    decoder: *mut raw::WebPAnimDecoder,
    _bytes: &'bytes [u8],
}

impl Drop for AnimationDecoder<'_> {
    fn drop(&mut self) {
        // SAFETY: the decoder came from WebPAnimDecoderNew, is not null, and is deleted only here.
        unsafe { raw::WebPAnimDecoderDelete(self.decoder) }
    }
}

impl<'bytes> AnimationDecoder<'bytes> {
    fn new(bytes: &'bytes [u8]) -> Result<Self, DecodeError> {
        let data = raw::WebPData { bytes: bytes.as_ptr(), size: bytes.len() };
        // SAFETY: `data` describes a live slice, which the borrow in the result keeps alive; null
        // options mean the defaults (RGBA, one thread).
        let decoder = unsafe { raw::WebPAnimDecoderNew(&raw const data, ptr::null()) };
        if decoder.is_null() {
            return Err(corrupt("its chunks are incomplete or inconsistent"));
        }
        Ok(Self { decoder, _bytes: bytes })
    }

    /// Width and height of the canvas.
    fn canvas(&self) -> Result<(u32, u32), DecodeError> {
        let mut info = raw::WebPAnimInfo::default();
        // SAFETY: the decoder is valid, `info` is a live struct for the call to fill.
        let read = unsafe { raw::WebPAnimDecoderGetInfo(self.decoder, &raw mut info) };
        if read == 0 {
            return Err(corrupt("its canvas cannot be read"));
        }
        Ok((info.canvas_width, info.canvas_height))
    }

    /// The canvas after the first frame, RGBA.
    fn first_frame(&self, width: u32, height: u32) -> Result<&[u8], DecodeError> {
        let mut pixels = ptr::null_mut();
        let mut timestamp = 0;
        // SAFETY: the decoder is valid, both pointers are to live variables for the call to fill.
        let read = unsafe {
            raw::WebPAnimDecoderGetNext(self.decoder, &raw mut pixels, &raw mut timestamp)
        };
        if read == 0 || pixels.is_null() {
            return Err(corrupt("its image data is damaged or ends early"));
        }
        // SAFETY: on success the pointer is to the decoder's canvas of width × height × 4 bytes,
        // valid until the next call on the decoder, which `&self` of this private type precludes:
        // the one caller reads a single frame.
        Ok(unsafe { std::slice::from_raw_parts(pixels, width as usize * height as usize * 4) })
    }
}

fn corrupt(detail: &str) -> DecodeError {
    DecodeError::Corrupt { format: FORMAT, detail: detail.to_owned() }
}
