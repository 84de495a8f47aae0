//! `spiece.model`: the parts of SentencePiece's protocol buffer that decide the ids.
//!
//! Source: google/sentencepiece (0.2.1) `src/sentencepiece_model.proto`.

/// What SentencePiece writes for a space.
pub(super) const SPACE: &str = "\u{2581}";

/// A model of SentencePiece.
pub(super) struct Model {
    pub(super) pieces: Vec<Piece>,
    /// 1 is unigrams.
    pub(super) kind: u64,
    pub(super) byte_fallback: bool,
    pub(super) spaces_end_words: bool,
    pub(super) rules: Vec<u8>,
    pub(super) adds_space: bool,
    pub(super) removes_spaces: bool,
    pub(super) escapes_spaces: bool,
}

/// A piece of text, with its log-probability.
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: PieceKind,
}

/// What a piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// A field of a message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Float(f32),
    Other,
}

impl Model {
    /// Reads the file's content; the error says what was found.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Self {
            pieces: Vec::new(),
            kind: 1,
            byte_fallback: false,
            spaces_end_words: false,
            rules: Vec::new(),
            adds_space: true,
            removes_spaces: true,
            escapes_spaces: true,
        };
        for field in fields(bytes) {
            match field? {
                (1, Field::Bytes(piece)) => model.pieces.push(Piece::read(piece)?),
                (2, Field::Bytes(trainer)) => {
                    for field in fields(trainer) {
                        match field? {
                            (3, Field::Number(kind)) => model.kind = kind,
                            (24, Field::Number(flag)) => model.spaces_end_words = flag != 0,
                            (35, Field::Number(flag)) => model.byte_fallback = flag != 0,
                            _ => {}
                        }
                    }
                }
                (3, Field::Bytes(normalizer)) => {
                    for field in fields(normalizer) {
                        match field? {
                            (2, Field::Bytes(rules)) => model.rules = rules.to_vec(),
                            (3, Field::Number(flag)) => model.adds_space = flag != 0,
                            (4, Field::Number(flag)) => model.removes_spaces = flag != 0,
                            (5, Field::Number(flag)) => model.escapes_spaces = flag != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        match model.pieces.is_empty() {
            true => Err("no pieces".to_owned()),
            false => Ok(model),
        }
    }
}

impl Piece {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: PieceKind::Normal };
        for field in fields(bytes) {
            match field? {
                (1, Field::Bytes(text)) => {
                    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
                    text.clone_into(&mut piece.text);
                }
                (2, Field::Float(score)) if score.is_finite() => piece.score = score,
                (2, _) => return Err(format!("no number as the score of {:?}", piece.text)),
                (3, Field::Number(kind)) => {
                    piece.kind = match kind {
                        1 => PieceKind::Normal,
                        2 => PieceKind::Unknown,
                        3 => PieceKind::Control,
                        4 => PieceKind::UserDefined,
                        5 => PieceKind::Unused,
                        6 => PieceKind::Byte,
                        other => return Err(format!("a piece of the unknown type {other}")),
                    }
                }
                _ => {}
            }
        }
        match piece.text.is_empty() {
            true => Err("a piece without text".to_owned()),
            false => Ok(piece),
        }
    }
}

/// The fields of a message with their numbers.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Field<'_>), String>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let field = field(&mut bytes).ok_or_else(|| "an incomplete message".to_owned());
        if field.is_err() {
            bytes = &[];
        }
        Some(field)
    })
}

fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let tag = number(bytes)?;
    let field = match tag & 7 {
        0 => Field::Number(number(bytes)?),
        1 => {
            take(bytes, 8)?;
            Field::Other
        }
        2 => {
            let length = usize::try_from(number(bytes)?).ok()?;
            Field::Bytes(take(bytes, length)?)
        }
        5 => Field::Float(f32::from_le_bytes(take(bytes, 4)?.try_into().ok()?)),
        _ => return None,
    };
    Some((tag >> 3, field))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

/// A number of up to ten bytes, seven bits each.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for place in 0..10 {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_are_errors() {
        for bytes in [
            &b""[..],
            b"\x0a",
            b"\x0a\x05abc",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x0a\x00",
            b"\x0a\x03\x0a\x01\xff",
            b"version https://git-lfs",
            b"\x0f",
        ] {
            assert!(Model::read(bytes).is_err(), "{bytes:?}");
        }
        let model = Model::read(b"\x0a\x08\x0a\x01a\x15\x00\x00\x80\xbf").unwrap();
        assert_eq!((model.pieces[0].text.as_str(), model.pieces[0].score), ("a", -1.0));
    }
}
