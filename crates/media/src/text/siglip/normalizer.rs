//! SentencePiece's normalisation: the longest rule at each place, spaces collapsed and escaped.
//!
//! Source: google/sentencepiece (0.2.1) `src/normalizer.cc` (`Normalize`, `NormalizePrefix`,
//! `DecodePrecompiledCharsMap`), `third_party/darts_clone/darts.h`.

use super::proto::{Model, SPACE};

/// The rules, and what happens to spaces.
pub(super) struct Normalizer {
    /// A double-array trie over bytes.
    trie: Vec<u32>,
    /// What rules write: texts that end with a zero.
    texts: Vec<u8>,
    adds_space: bool,
    removes_spaces: bool,
}

impl Normalizer {
    /// The normalisation of a model; the error says what was found.
    pub(super) fn new(model: &Model) -> Result<Self, String> {
        if !model.escapes_spaces {
            return Err("`escape_whitespaces` false".to_owned());
        }
        if model.spaces_end_words {
            return Err("`treat_whitespace_as_suffix` true".to_owned());
        }
        let (trie, texts) = match model.rules.as_slice() {
            [] => (Vec::new(), Vec::new()),
            rules => compiled(rules).ok_or_else(|| "damaged normalisation rules".to_owned())?,
        };
        let (adds_space, removes_spaces) = (model.adds_space, model.removes_spaces);
        Ok(Self { trie, texts, adds_space, removes_spaces })
    }

    pub(super) fn normalize(&self, mut text: &str) -> String {
        if self.removes_spaces {
            while !text.is_empty() {
                let (written, length) = self.prefix(text);
                if written != " " {
                    break;
                }
                text = &text[length..];
            }
        }
        let mut normalized = String::with_capacity(2 * text.len());
        if text.is_empty() {
            return normalized;
        }
        if self.adds_space {
            normalized.push_str(SPACE);
        }
        let mut after_space = self.removes_spaces;
        while !text.is_empty() {
            let (mut written, length) = self.prefix(text);
            if after_space {
                written = written.trim_start_matches(' ');
            }
            if !written.is_empty() {
                normalized.push_str(&written.replace(' ', SPACE));
                after_space = written.ends_with(' ');
            }
            text = &text[length..];
            after_space &= self.removes_spaces;
        }
        if self.removes_spaces {
            let kept = normalized.trim_end_matches(SPACE).len();
            normalized.truncate(kept);
        }
        normalized
    }

    /// What the longest rule at the beginning writes, and how many bytes it reads; the first letter
    /// if no rule matches.
    fn prefix<'a>(&'a self, text: &'a str) -> (&'a str, usize) {
        let letter = text.chars().next().map_or(0, char::len_utf8);
        let own = (&text[..letter], letter);
        let Some((length, start)) = self.longest(text.as_bytes()) else { return own };
        let written = self.texts.get(start..).unwrap_or_default();
        let end = written.iter().position(|byte| *byte == 0).unwrap_or(written.len());
        // Rules of whole letters, which all models have.
        match std::str::from_utf8(&written[..end]) {
            Ok(written) if text.is_char_boundary(length) => (written, length),
            _ => own,
        }
    }

    /// Length of the longest rule at the beginning, and where its text starts.
    fn longest(&self, text: &[u8]) -> Option<(usize, usize)> {
        let unit = |position: usize| self.trie.get(position).copied();
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut position = offset(unit(0)?);
        let mut found = None;
        for (index, byte) in text.iter().enumerate() {
            position ^= usize::from(*byte);
            let Some(node) =
                unit(position).filter(|node| node & ((1 << 31) | 0xff) == u32::from(*byte))
            else {
                break;
            };
            position ^= offset(node);
            if (node >> 8) & 1 == 1 {
                let value = unit(position)? & ((1 << 31) - 1);
                found = Some((index + 1, value as usize));
            }
        }
        found
    }
}

/// The trie and the texts of `precompiled_charsmap`.
fn compiled(rules: &[u8]) -> Option<(Vec<u32>, Vec<u8>)> {
    let (size, rest) = rules.split_first_chunk::<4>()?;
    let (trie, texts) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*size)).ok()?)?;
    let (units, []) = trie.as_chunks::<4>() else { return None };
    if units.is_empty() || texts.last() != Some(&0) {
        return None;
    }
    Some((units.iter().map(|unit| u32::from_le_bytes(*unit)).collect(), texts.to_vec()))
}
