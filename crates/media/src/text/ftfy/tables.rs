//! The character tables of ftfy 6.3.1, read once from `assets/ftfy_6_3_1.json`
//! (`scripts/goldens/text_tables.py` writes that file).

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use regex::Regex;
use serde::Deserialize;

/// The tables of the asset.
#[derive(Deserialize)]
struct Asset {
    badness: String,
    encodings: HashMap<String, String>,
    windows_1252_undefined: Vec<u8>,
    clues: Clues,
    ligatures: HashMap<char, String>,
    widths: HashMap<char, String>,
    upper_case_entities: HashMap<String, String>,
}

/// Characters which bytes of UTF-8 turn into when read in a Latin-1-like encoding.
#[derive(Deserialize)]
struct Clues {
    utf8_first_of_2: String,
    utf8_first_of_3: String,
    utf8_first_of_4: String,
    utf8_continuation: String,
    utf8_continuation_strict: String,
}

/// A single-byte encoding that mojibake may have gone through.
pub(super) struct Encoding {
    decode: [char; 256],
    /// Bytes of the characters above U+007F. `None` for latin-1, where byte and code point agree.
    encode: Option<HashMap<char, u8>>,
    /// Whether byte 0x1A stands for U+FFFD, as in ftfy's "sloppy" encodings.
    pub(super) sloppy: bool,
    pub(super) latin_1: bool,
    pub(super) macroman: bool,
}

impl Encoding {
    fn latin_1() -> Self {
        let decode = std::array::from_fn(|byte| char::from(byte as u8));
        Self { decode, encode: None, sloppy: false, latin_1: true, macroman: false }
    }

    fn from_upper_half(name: &str, upper: &str) -> Self {
        let sloppy = name.starts_with("sloppy-");
        let mut decode: [char; 256] = std::array::from_fn(|byte| char::from(byte as u8));
        for (entry, character) in decode.iter_mut().skip(0x80).zip(upper.chars()) {
            *entry = character;
        }
        if sloppy {
            decode[0x1A] = char::REPLACEMENT_CHARACTER;
        }
        let encode = (0..=255u8)
            .map(|byte| (decode[usize::from(byte)], byte))
            .filter(|(character, _)| !character.is_ascii())
            .collect();
        Self { decode, encode: Some(encode), sloppy, latin_1: false, macroman: name == "macroman" }
    }

    /// The bytes of `text`, or `None` if this encoding lacks one of its characters.
    pub(super) fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars()
            .map(|character| match (&self.encode, u8::try_from(character)) {
                (None, byte) => byte.ok(),
                // in a sloppy encoding byte 0x1A is U+FFFD, and U+001A has no byte
                (Some(_), Ok(0x1A)) if self.sloppy => None,
                (Some(_), Ok(byte)) if byte.is_ascii() => Some(byte),
                (Some(table), _) => table.get(&character).copied(),
            })
            .collect()
    }

    /// The character of one byte.
    pub(super) fn decode(&self, byte: u8) -> char {
        self.decode[usize::from(byte)]
    }
}

/// Bits of [`Tables::clue`].
pub(super) const FIRST_OF_2: u8 = 1;
pub(super) const FIRST_OF_3: u8 = 2;
pub(super) const FIRST_OF_4: u8 = 4;
pub(super) const CONTINUATION: u8 = 8;
pub(super) const CONTINUATION_STRICT: u8 = 16;

/// Everything ftfy looks up.
pub(super) struct Tables {
    /// Juxtapositions of characters that hardly occur outside mojibake (`ftfy/badness.py`).
    pub(super) badness: Regex,
    /// The encodings to try, in ftfy's order (`CHARMAP_ENCODINGS`).
    pub(super) encodings: Vec<Encoding>,
    /// Index of sloppy-windows-1252 in `encodings`.
    windows_1252: usize,
    windows_1252_undefined: Vec<u8>,
    clues: HashMap<char, u8>,
    /// Ligatures and fullwidth or halfwidth forms, each with its replacement.
    pub(super) ligatures: HashMap<char, String>,
    pub(super) widths: HashMap<char, String>,
    /// Entities that ftfy adds to those of HTML: "EACUTE;" and the like, with the semicolon.
    pub(super) upper_case_entities: HashMap<String, String>,
}

impl Tables {
    /// Windows-1252 with the undefined bytes passed through.
    pub(super) fn windows_1252(&self) -> &Encoding {
        &self.encodings[self.windows_1252]
    }

    /// Whether strict Windows-1252 lacks this byte.
    pub(super) fn is_undefined_in_windows_1252(&self, byte: u8) -> bool {
        self.windows_1252_undefined.contains(&byte)
    }

    /// The roles a character plays in UTF-8 mojibake, as bits.
    pub(super) fn clue(&self, character: char) -> u8 {
        self.clues.get(&character).copied().unwrap_or(0)
    }
}

const ORDER: [&str; 9] = [
    "sloppy-windows-1252",
    "sloppy-windows-1251",
    "sloppy-windows-1250",
    "sloppy-windows-1253",
    "sloppy-windows-1254",
    "sloppy-windows-1257",
    "iso-8859-2",
    "macroman",
    "cp437",
];

#[expect(
    clippy::expect_used,
    reason = "the asset is compiled in; every test of this module reads it"
)]
pub(super) static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let asset: Asset = serde_json::from_str(include_str!("../../../assets/ftfy_6_3_1.json"))
        .expect("the embedded tables parse");
    let mut encodings = vec![Encoding::latin_1()];
    encodings.extend(ORDER.iter().map(|name| {
        Encoding::from_upper_half(
            name,
            asset.encodings.get(*name).expect("an encoding by that name"),
        )
    }));
    let mut clues = HashMap::new();
    for (members, bit) in [
        (&asset.clues.utf8_first_of_2, FIRST_OF_2),
        (&asset.clues.utf8_first_of_3, FIRST_OF_3),
        (&asset.clues.utf8_first_of_4, FIRST_OF_4),
        (&asset.clues.utf8_continuation, CONTINUATION),
        (&asset.clues.utf8_continuation_strict, CONTINUATION_STRICT),
    ] {
        for character in members.chars().collect::<HashSet<_>>() {
            *clues.entry(character).or_insert(0) |= bit;
        }
    }
    Tables {
        badness: Regex::new(&asset.badness).expect("the embedded pattern compiles"),
        encodings,
        windows_1252: 1,
        windows_1252_undefined: asset.windows_1252_undefined,
        clues,
        ligatures: asset.ligatures,
        widths: asset.widths,
        upper_case_entities: asset.upper_case_entities,
    }
});
