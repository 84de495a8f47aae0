//! Rebuilds PNG files that break the standard but that Pillow reads, so that a strict decoder reads
//! them too: a wrong checksum of image data, an end after the last row, fewer rows than stated,
//! damaged chunks that do not affect the pixels.
//!
//! Source: python-pillow/Pillow (13.0.0) `src/PIL/PngImagePlugin.py` (`ChunkStream`,
//! `PngImageFile._open`, `load_read`, `load_end`), `src/libImaging/ZipDecode.c`.

use std::sync::Arc;

use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::Limits;
use super::budget::Permit;

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
/// The most bytes of one stored block of a deflate stream.
const BLOCK: usize = 65_535;
/// First column, first row, step along x, step along y of each pass of an interlaced image.
const PASSES: [[u32; 4]; 7] = [
    [0, 0, 8, 8],
    [4, 0, 8, 8],
    [0, 4, 4, 8],
    [2, 0, 4, 4],
    [0, 2, 2, 4],
    [1, 0, 2, 2],
    [0, 1, 1, 2],
];

/// The header and palette that precede the pixels.
#[derive(Default)]
struct Head<'a> {
    header: Option<[u8; 13]>,
    palette: Option<&'a [u8]>,
    transparency: Option<&'a [u8]>,
}

/// The file as Pillow understands it, rewritten to follow the standard, and the permit to decode
/// its pixels; `None` if Pillow rejects it too.
pub(super) fn rebuilt(bytes: &[u8], limits: &Limits) -> Option<(Vec<u8>, Arc<Permit>)> {
    let (head, position) = head(bytes)?;
    let header = head.header?;
    let layout = Layout::of(&header)?;
    let permit = limits.admit("PNG", u64::from(layout.width), u64::from(layout.height)).ok()?;
    let data = Stored::new(layout.bytes()?)?.inflated(bytes, position, &layout)?;

    let mut file = SIGNATURE.to_vec();
    chunk(&mut file, *b"IHDR", &header)?;
    let grey: Vec<u8>;
    if header[9] == 3 {
        let palette = match head.palette {
            Some(palette) => palette,
            None => {
                // Pillow's palette of an image that has none
                grey = (0..1_u32 << header[8]).flat_map(|index| [index as u8; 3]).collect();
                &grey
            }
        };
        chunk(&mut file, *b"PLTE", palette)?;
    }
    if let Some(transparency) = head.transparency.filter(|_| header[9] < 4) {
        chunk(&mut file, *b"tRNS", transparency)?;
    }
    chunk(&mut file, *b"IDAT", &data)?;
    chunk(&mut file, *b"IEND", &[])?;
    Some((file, permit))
}

fn chunk(file: &mut Vec<u8>, name: [u8; 4], data: &[u8]) -> Option<()> {
    file.extend(u32::try_from(data.len()).ok()?.to_be_bytes());
    file.extend(name);
    file.extend(data);
    file.extend(checksum(name, data).to_be_bytes());
    Some(())
}

fn checksum(name: [u8; 4], data: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(&name);
    crc.update(data);
    crc.sum()
}

/// The length and the name of the chunk at `position`; `None` if no chunk begins there.
fn chunk_at(bytes: &[u8], position: usize) -> Option<(usize, [u8; 4])> {
    let [length, name]: [[u8; 4]; 2] = [
        bytes.get(position..)?.first_chunk().copied()?,
        bytes.get(position + 4..)?.first_chunk().copied()?,
    ];
    let is_word = |&byte: &u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    name.iter().all(is_word).then_some((length, name))
}

/// Reads up to the image data and returns its position. Every chunk before it must be whole.
fn head(bytes: &[u8]) -> Option<(Head<'_>, usize)> {
    let mut head = Head::default();
    let mut position = SIGNATURE.len();
    loop {
        let (length, name) = chunk_at(bytes, position)?;
        let data = position + 8;
        if name == *b"IDAT" {
            return Some((head, position));
        }
        let body = bytes.get(data..data.checked_add(length)?)?;
        let crc: [u8; 4] = bytes.get(data + length..)?.first_chunk().copied()?;
        if u32::from_be_bytes(crc) != checksum(name, body) || name == *b"IEND" {
            return None;
        }
        match &name {
            b"IHDR" => {
                let mut header: [u8; 13] = body.first_chunk().copied()?;
                if header[11] != 0 {
                    return None;
                }
                // Pillow ignores the method of compression, and takes any number for
                // "interlaced" but zero.
                header[10] = 0;
                header[12] = header[12].min(1);
                head.header = Some(header);
            }
            b"PLTE" => head.palette = Some(&body[..body.len().min(256 * 3) / 3 * 3]),
            b"tRNS" => head.transparency = Some(&body[..body.len().min(256)]),
            _ => {}
        }
        position = data + length + 4;
    }
}

/// What a `tRNS` chunk before the image data says.
pub(super) fn transparency(bytes: &[u8]) -> Option<&[u8]> {
    let mut position = SIGNATURE.len();
    loop {
        let (length, name) = chunk_at(bytes, position)?;
        let data = position + 8;
        match &name {
            b"IDAT" => return None,
            b"tRNS" => {
                let body = bytes.get(data..data.checked_add(length)?)?;
                let crc: [u8; 4] = bytes.get(data + length..)?.first_chunk().copied()?;
                return (u32::from_be_bytes(crc) == checksum(name, body)).then_some(body);
            }
            _ => position = data.checked_add(length)?.checked_add(4)?,
        }
    }
}

/// Where the rows of an image lie in its data.
struct Layout {
    width: u32,
    height: u32,
    bits: u64,
    interlaced: bool,
}

impl Layout {
    fn of(header: &[u8; 13]) -> Option<Self> {
        let number = |position: usize| Some(u32::from_be_bytes(*header[position..].first_chunk()?));
        let (depth, colour) = (header[8], header[9]);
        let channels = match (colour, depth) {
            (0, 1 | 2 | 4 | 8 | 16) | (3, 1 | 2 | 4 | 8) => 1,
            (4, 8 | 16) => 2,
            (2, 8 | 16) => 3,
            (6, 8 | 16) => 4,
            _ => return None,
        };
        Some(Self {
            width: number(0)?,
            height: number(4)?,
            bits: u64::from(depth) * channels,
            interlaced: header[12] != 0,
        })
    }

    /// (rows, bytes of a row with its filter) of each pass.
    fn passes(&self) -> Vec<(u64, u64)> {
        let row = |width: u32| (u64::from(width) * self.bits).div_ceil(8) + 1;
        if !self.interlaced {
            return vec![(u64::from(self.height), row(self.width))];
        }
        let steps =
            |length: u32, first: u32, step: u32| length.saturating_sub(first).div_ceil(step);
        PASSES
            .iter()
            .map(|&[left, top, dx, dy]| (steps(self.width, left, dx), steps(self.height, top, dy)))
            .filter(|&(columns, rows)| columns > 0 && rows > 0)
            .map(|(columns, rows)| (u64::from(rows), row(columns)))
            .collect()
    }

    fn bytes(&self) -> Option<usize> {
        let sum = self.passes().iter().map(|(rows, bytes)| rows * bytes).sum::<u64>();
        usize::try_from(sum).ok()
    }

    /// Whether a row ends after so many bytes.
    fn row_ends_at(&self, mut position: u64) -> bool {
        for (rows, bytes) in self.passes() {
            if position < rows * bytes {
                return position.is_multiple_of(bytes);
            }
            position -= rows * bytes;
        }
        position == 0
    }
}

/// A zlib stream of stored blocks with room for so many bytes, which are zero at first. Its
/// checksum is omitted, as the decoder ignores it.
struct Stored {
    stream: Vec<u8>,
    bytes: usize,
    written: usize,
}

impl Stored {
    fn new(bytes: usize) -> Option<Self> {
        let blocks = bytes.div_ceil(BLOCK);
        let mut stream = vec![0; bytes.checked_add(blocks * 5 + 6)?];
        stream[..2].copy_from_slice(&[0x78, 0x01]);
        for block in 0..blocks {
            let start = Self::start(block * BLOCK) - 5;
            let length = (bytes - block * BLOCK).min(BLOCK) as u16;
            stream[start] = u8::from(block + 1 == blocks);
            stream[start + 1..start + 3].copy_from_slice(&length.to_le_bytes());
            stream[start + 3..start + 5].copy_from_slice(&(!length).to_le_bytes());
        }
        Some(Self { stream, bytes, written: 0 })
    }

    /// The position in the stream of a byte of the data.
    const fn start(position: usize) -> usize {
        2 + (position / BLOCK + 1) * 5 + position
    }

    /// The stream with the image data from `position` on, or `None` if Pillow rejects it.
    fn inflated(mut self, bytes: &[u8], mut position: usize, layout: &Layout) -> Option<Vec<u8>> {
        let mut inflater = Decompress::new(true);
        let mut ended = false;
        while self.written < self.bytes && !ended {
            let (length, name) = chunk_at(bytes, position)?;
            if name != *b"IDAT" {
                return None;
            }
            let data = bytes.get(position + 8..)?;
            ended = self.inflate(&mut inflater, &data[..length.min(data.len())])?;
            position = position.checked_add(length)?.checked_add(12)?;
        }
        // Data that ends properly after a row leaves the other rows black.
        if !layout.row_ends_at(self.written as u64) {
            return None;
        }
        // Pillow reads on to the end; a chunk truncated there is an error, an end between two is
        // none.
        while let Some((length, name)) = chunk_at(bytes, position) {
            if name == *b"IEND" {
                break;
            }
            position = position.checked_add(length)?.checked_add(12)?;
            if position - 4 > bytes.len() {
                return None;
            }
        }
        Some(self.stream)
    }

    /// Adds a piece of data; true if the data ends with it.
    fn inflate(&mut self, inflater: &mut Decompress, mut data: &[u8]) -> Option<bool> {
        while self.written < self.bytes && !data.is_empty() {
            let start = Self::start(self.written);
            let room = (BLOCK - self.written % BLOCK).min(self.bytes - self.written);
            let (before_in, before_out) = (inflater.total_in(), inflater.total_out());
            let output = &mut self.stream[start..start + room];
            let status = inflater.decompress(data, output, FlushDecompress::None);
            let read = (inflater.total_in() - before_in) as usize;
            let wrote = (inflater.total_out() - before_out) as usize;
            data = &data[read..];
            self.written += wrote;
            match status {
                Ok(Status::StreamEnd) => return Some(true),
                // Damage behind the last row is not looked at.
                Err(_) if self.written == self.bytes => return Some(true),
                Err(_) => return None,
                _ if read == 0 && wrote == 0 => return Some(false),
                _ => {}
            }
        }
        Some(false)
    }
}
