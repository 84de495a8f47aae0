//! Reads a tar that is not trusted, as a stream: POSIX ustar, GNU and pax names and sizes. Nothing
//! is unpacked, and no claim of a header is believed before it is checked.

use std::io::{self, Read};

use bytes::Bytes;

use super::source::Reader;

/// Headers and the data of members fill whole blocks.
const BLOCK: u64 = 512;
/// The longest name or list of attributes that is read.
const MAX_ATTRIBUTES: u64 = 1 << 20;

/// A plain file in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    /// Where its first header begins: reading can start there.
    pub(super) at: u64,
    pub(super) size: u64,
}

/// The plain files of an archive, in order.
pub(super) struct Members {
    reader: Reader,
    /// Where the next header begins.
    next: u64,
    /// Whether the end of the archive was read.
    has_ended: bool,
    /// Takes every header, if the archive is to be identified.
    pub(super) hasher: Option<blake3::Hasher>,
}

/// What a header says.
struct Header {
    name: String,
    size: u64,
    kind: u8,
}

impl Members {
    /// Reads on from the position of `reader`, which is that of a header.
    pub(super) fn new(reader: Reader) -> Self {
        Self { next: reader.position(), reader, has_ended: false, hasher: None }
    }

    /// Where the next header is looked for, for messages.
    pub(super) fn position(&self) -> u64 {
        self.next
    }

    /// The next plain file; whatever was not read of the one before is skipped.
    pub(super) fn next_member(&mut self) -> io::Result<Option<Member>> {
        if self.has_ended {
            return Ok(None);
        }
        let mut at = self.next;
        let mut first = None;
        let (mut long_name, mut long_size) = (None, None);
        loop {
            let skipped = self.next.saturating_sub(self.reader.position());
            self.reader.skip(skipped)?;
            let Some(header) = self.header()? else {
                self.has_ended = true;
                return match first {
                    None => Ok(None),
                    Some(()) => Err(damaged("it ends behind the name of a member")),
                };
            };
            let data = self.next + BLOCK;
            let size = match header.kind {
                b'L' | b'x' | b'g' => header.size,
                _ => long_size.unwrap_or(header.size),
            };
            let end = data.checked_add(size).filter(|end| *end <= self.reader.length());
            let Some(end) = end else {
                return Err(damaged(&format!(
                    "a member of {size} bytes begins at byte {data} of {}; hint: the download or \
                     copy is incomplete",
                    self.reader.length()
                )));
            };
            self.next = end.div_ceil(BLOCK).saturating_mul(BLOCK);
            match header.kind {
                b'L' => {
                    let name = self.attributes(size)?;
                    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                    long_name = Some(String::from_utf8_lossy(name).into_owned());
                    first = Some(());
                }
                b'x' => {
                    let (name, size) = pax(&self.attributes(size)?)?;
                    long_name = name.or(long_name);
                    long_size = size.or(long_size);
                    first = Some(());
                }
                b'0' | 0 | b'7' if !header.name.ends_with('/') => {
                    let name = long_name.unwrap_or(header.name);
                    return Ok(Some(Member { name, at, size }));
                }
                // Folders, links, devices, what holds for the whole archive.
                _ => (long_name, long_size, first, at) = (None, None, None, self.next),
            }
        }
    }

    /// The bytes of the member that was found last, up to `limit`; not to be called twice.
    pub(super) fn read(&mut self, member: &Member, limit: u64) -> io::Result<Bytes> {
        let length = member.size.min(limit);
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        Read::take(&mut self.reader, length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != length {
            return Err(damaged("it ends inside a member; it is shorter than when it was opened"));
        }
        Ok(bytes.into())
    }

    fn attributes(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_ATTRIBUTES {
            let found = format!("expected at most {MAX_ATTRIBUTES} bytes of a name, found {size}");
            return Err(damaged(&found));
        }
        let mut bytes = Vec::new();
        Read::take(&mut self.reader, size).read_to_end(&mut bytes)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes);
        }
        Ok(bytes)
    }

    /// The header here; none at the end of the archive.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut block = Vec::with_capacity(BLOCK as usize);
        Read::take(&mut self.reader, BLOCK).read_to_end(&mut block)?;
        // Of a remote archive only a part may be read.
        if block.is_empty() && self.next < self.reader.length() {
            return Ok(None);
        }
        if block.is_empty() {
            return Err(damaged(
                "it ends without the block of zeros that ends an archive; hint: the download or \
                 copy is incomplete",
            ));
        }
        if block.iter().all(|byte| *byte == 0) && block.len() == BLOCK as usize {
            return Ok(None);
        }
        let Some(fields) = Fields::of(&block) else {
            let found = "it ends inside a header; hint: the download or copy is incomplete";
            return Err(damaged(found));
        };
        let sum = block.iter().enumerate().fold(0_u64, |sum, (at, byte)| {
            // The checksum counts itself as spaces.
            sum + u64::from(if (148..156).contains(&at) { b' ' } else { *byte })
        });
        if number(fields.checksum) != Some(sum) {
            return Err(damaged("expected a header, found other bytes (the checksum is wrong)"));
        }
        let size = number(fields.size);
        let Some(size) = size else {
            return Err(damaged("the size of a member is not a number"));
        };
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&block);
        }
        let text = |field: &[u8]| {
            let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
            String::from_utf8_lossy(field.get(..end).unwrap_or_default()).into_owned()
        };
        let (name, prefix) = (text(fields.name), text(fields.prefix));
        let is_posix = fields.magic == b"ustar\0";
        let name = match is_posix && !prefix.is_empty() {
            true => format!("{prefix}/{name}"),
            false => name,
        };
        Ok(Some(Header { name, size, kind: fields.kind }))
    }
}

/// The fields of a header that are read.
struct Fields<'block> {
    name: &'block [u8],
    size: &'block [u8],
    checksum: &'block [u8],
    kind: u8,
    magic: &'block [u8],
    prefix: &'block [u8],
}

impl<'block> Fields<'block> {
    fn of(block: &'block [u8]) -> Option<Self> {
        if block.len() != BLOCK as usize {
            return None;
        }
        Some(Self {
            name: block.get(..100)?,
            size: block.get(124..136)?,
            checksum: block.get(148..156)?,
            kind: *block.get(156)?,
            magic: block.get(257..263)?,
            prefix: block.get(345..500)?,
        })
    }
}

/// A number: octal digits, or GNU's binary form of large ones.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        let first = u64::from(first & 0x7f);
        return rest
            .iter()
            .try_fold(first, |number, byte| Some(number.checked_mul(256)? | u64::from(*byte)));
    }
    let digits = field.iter().copied().skip_while(|byte| *byte == b' ');
    let digits: Vec<u8> = digits.take_while(|byte| *byte != 0 && *byte != b' ').collect();
    digits.iter().try_fold(0_u64, |number, byte| match byte {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// The name and the size in a list of attributes: `LENGTH KEY=VALUE\n`, again and again.
fn pax(mut list: &[u8]) -> io::Result<(Option<String>, Option<u64>)> {
    let (mut name, mut size) = (None, None);
    let wrong = || damaged("the attributes of a member are not readable");
    while !list.is_empty() {
        let space = list.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let (length, _) = list.split_at_checked(space).ok_or_else(wrong)?;
        let length = std::str::from_utf8(length).ok().and_then(|text| text.parse::<usize>().ok());
        let (entry, rest) =
            length.and_then(|length| list.split_at_checked(length)).ok_or_else(wrong)?;
        let entry = entry.get(space + 1..).ok_or_else(wrong)?;
        let entry = entry.strip_suffix(b"\n").ok_or_else(wrong)?;
        let equals = entry.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        let (key, value) = entry.split_at_checked(equals).ok_or_else(wrong)?;
        let value = String::from_utf8_lossy(value.get(1..).unwrap_or_default());
        match key {
            b"path" => name = Some(value.into_owned()),
            b"size" => size = Some(value.parse().map_err(|_| wrong())?),
            _ => {}
        }
        list = rest;
    }
    Ok((name, size))
}

fn damaged(detail: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"00000001750\0"), Some(1000));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\x02\0\0\0\0"), Some(1 << 33));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        assert_eq!(number(b"12x\0"), None);
    }

    #[test]
    fn attributes_that_lie_are_errors() {
        let (name, size) = pax(b"14 path=a/b.c\n13 size=7777\n").unwrap();
        assert_eq!((name.as_deref(), size), (Some("a/b.c"), Some(7777)));
        for wrong in [&b"999 path=a\n"[..], b"x path=a\n", b"3 p", b"0 path=a\n", b"9 size=x\n"] {
            assert!(pax(wrong).is_err(), "{wrong:?}");
        }
    }
}
