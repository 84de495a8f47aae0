//! Images that are damaged or truncated, state a wrong size, or are not images.

mod support;

use std::time::{Duration, Instant};

use media::decode::{DecodeError, Limits, MOST_PIXELS_AT_ONCE, decode, pixels_at_once};
use support::{files, fixture, short_sha256};

#[test]
fn what_pillow_refuses_of_truncated_files_is_refused() {
    for (name, bytes, golden) in files() {
        for (part, verdict) in golden["truncated"].as_str().unwrap().bytes().enumerate() {
            let result = decode(&bytes[..bytes.len() * part / 64], &Limits::default());
            if verdict == b'0' || !name.ends_with(".webp") {
                assert_eq!(
                    result.is_ok(),
                    verdict == b'1',
                    "{name} truncated at {part}/64: {result:?}"
                );
            }
            if let Err(error) = result {
                assert_eq!(
                    error.reason(),
                    "decode_error",
                    "{name} truncated at {part}/64: {error}"
                );
            }
        }
    }
}

/// Copies with one bit changed, as scripts/goldens/images.py makes them.
fn flips(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let mut state = 1_u64;
    (0..200).map(move |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bit = (state >> 33) as usize % (bytes.len() * 8);
        let mut changed = bytes.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        changed
    })
}

#[test]
fn flipped_bits_give_an_error_or_an_image() {
    for (name, bytes, _) in files() {
        for changed in flips(&bytes) {
            let start = Instant::now();
            if let Err(error) = decode(&changed, &Limits::default()) {
                assert!(!error.to_string().is_empty());
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{name}");
        }
    }
}

#[test]
fn damaged_jpegs_are_rejected_or_decoded_as_pillow_does() {
    // A flipped bit of the header may ask for a long side, which Pillow allows.
    let limits = Limits { max_width: u32::MAX, max_height: u32::MAX, ..Limits::default() };
    for (name, bytes, golden) in files() {
        let Some(verdicts) = golden["flipped"].as_str().filter(|_| name.ends_with(".jpg")) else {
            continue;
        };
        let mut pixels = Vec::new();
        let mut found = String::new();
        for changed in flips(&bytes) {
            let result = decode(&changed, &limits);
            found.push(if result.is_ok() { '1' } else { '0' });
            pixels.extend(result.into_iter().flat_map(media::decode::Image::into_pixels));
        }
        assert_eq!(found, verdicts, "{name}");
        assert_eq!(short_sha256(&pixels), golden["flipped_pixels"], "{name}");
    }
}

#[test]
fn damaged_pngs_that_pillow_reads_have_its_pixels() {
    let limits = Limits { max_width: u32::MAX, max_height: u32::MAX, ..Limits::default() };
    let mut read = 0;
    for (name, bytes, golden) in files() {
        let Some(verdicts) = golden["flipped"].as_str().filter(|_| name.ends_with(".png")) else {
            continue;
        };
        let mut pixels = Vec::new();
        for (changed, verdict) in flips(&bytes).zip(verdicts.bytes()) {
            // What Pillow refuses may be read here: it looks at checksums of chunks that have no
            // bearing on the pixels.
            if verdict == b'1' {
                read += 1;
                let image = decode(&changed, &limits);
                pixels
                    .extend(image.unwrap_or_else(|error| panic!("{name}: {error}")).into_pixels());
            }
        }
        assert_eq!(short_sha256(&pixels), golden["flipped_pixels"], "{name}");
    }
    assert!(read > 300, "{read} files");
}

#[test]
fn pixels_are_counted_while_an_image_lives() {
    let before = pixels_at_once();
    let image = decode(&fixture("images/jpeg-420.jpg"), &Limits::default()).unwrap();
    let copy = image.clone();
    // Other tests of this file decode at the same time, so the count is at least this image's.
    assert!(pixels_at_once() >= 61 * 45);
    drop((image, copy));
    assert!(before <= MOST_PIXELS_AT_ONCE && pixels_at_once() <= MOST_PIXELS_AT_ONCE);
}

#[test]
fn headers_are_checked_before_pixels_exist() {
    let start = Instant::now();
    // JPEG: 65,500 pixels a side, claimed by the frame header.
    let mut jpeg = fixture("images/jpeg-420.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc]);
    let error = decode(&jpeg, &Limits::default()).unwrap_err();
    assert_eq!(error, DecodeError::TooLarge { what: "width", found: 65_500, limit: 16_384 });
    assert_eq!(error.reason(), "image_too_large");

    // PNG: 60,000 pixels a side; libpng would say the same of one that is all one colour.
    let png = png_header(60_000, 60_000);
    let error = decode(&png, &Limits::default()).unwrap_err();
    assert_eq!(error.reason(), "image_too_large", "{error}");

    // Each side is allowed, the product is not.
    let error = decode(&png_header(16_000, 16_000), &Limits::default()).unwrap_err();
    assert!(matches!(error, DecodeError::TooLarge { what: "pixel count", .. }), "{error}");

    // WebP: an extended header claims 16,777,216 pixels a side.
    let mut webp = fixture("images/webp-animated.webp");
    webp[24..30].fill(0xff);
    assert!(decode(&webp, &Limits::default()).is_err());

    let limits = Limits { max_bytes: 100, ..Limits::default() };
    let error = decode(&fixture("images/jpeg-444.jpg"), &limits).unwrap_err();
    assert!(matches!(error, DecodeError::TooLarge { what: "encoded size", .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2));
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}

/// Corrects the checksum of every chunk, so that damage reaches the decoder behind it.
fn repair_checksums(png: &mut [u8]) {
    let mut start = 8;
    while let Some(&length) = png.get(start..).and_then(<[u8]>::first_chunk) {
        let end = start + 8 + u32::from_be_bytes(length) as usize;
        let Some(chunk) = png.get(start + 4..end) else { break };
        let crc = crc32(chunk).to_be_bytes();
        let Some(place) = png.get_mut(end..end + 4) else { break };
        place.copy_from_slice(&crc);
        start = end + 4;
    }
}

#[test]
fn damaged_pngs_with_right_checksums_give_an_error_or_an_image() {
    let (mut images, mut errors) = (0, 0);
    for (name, bytes, _) in files() {
        if !name.ends_with(".png") {
            continue;
        }
        for mut changed in flips(&bytes) {
            repair_checksums(&mut changed);
            match decode(&changed, &Limits::default()) {
                Ok(image) => {
                    images += 1;
                    assert_eq!(image.pixels().len(), image.row_bytes() * image.height() as usize);
                }
                Err(_) => errors += 1,
            }
        }
    }
    assert!(images > 500 && errors > 500, "{images} images, {errors} errors");
}

/// A PNG that states a size and holds no image.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let crc = crc32(&chunk);
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend(chunk);
    png.extend(crc.to_be_bytes());
    png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    png
}

#[test]
fn a_flood_of_progressive_scans_is_bounded() {
    let jpeg = fixture("images/jpeg-progressive.jpg");
    // Every scan from the second on is repeated: legal bytes, a pass over the image each.
    let scans: Vec<usize> = jpeg
        .windows(2)
        .enumerate()
        .filter_map(|(place, pair)| (pair == [0xff, 0xda]).then_some(place))
        .collect();
    let flood = |times: usize| {
        let mut bytes = jpeg[..jpeg.len() - 2].to_vec();
        for _ in 0..times {
            bytes.extend(&jpeg[scans[scans.len() - 1]..jpeg.len() - 2]);
        }
        bytes.extend([0xff, 0xd9]);
        bytes
    };
    assert!(decode(&flood(1), &Limits::default()).is_ok());
    let error = decode(&flood(1000), &Limits::default()).unwrap_err();
    assert!(matches!(error, DecodeError::TooLarge { what: "scan count", .. }), "{error}");
}

#[test]
fn what_is_not_an_image_is_named() {
    assert_eq!(decode(b"", &Limits::default()), Err(DecodeError::Empty));
    for (bytes, name) in
        [(&b"GIF89a........"[..], "GIF"), (b"BM..............", "BMP"), (b"\0", "bytes 00")]
    {
        let error = decode(bytes, &Limits::default()).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert!(error.to_string().contains("JPEG, PNG or WebP"), "{error}");
        assert_eq!(error.reason(), "decode_error");
    }
    let error = decode(b"version https://git-lfs.github.com/spec/v1\n", &Limits::default());
    let error = error.unwrap_err();
    assert!(error.to_string().contains("a pointer file of git-lfs"), "{error}");
    assert_eq!(error.reason(), "decode_error");
    // Magic bytes and nothing, or nonsense, behind them.
    for magic in
        [&b"\xff\xd8\xff"[..], b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"RIFF\x04\0\0\0WEBPVP8 "]
    {
        for filler in [0_usize, 1, 100, 10_000] {
            for byte in [0x00, 0xff, 0xda, 0x41] {
                let mut bytes = magic.to_vec();
                bytes.extend(std::iter::repeat_n(byte, filler));
                assert!(decode(&bytes, &Limits::default()).is_err());
            }
        }
    }
}
