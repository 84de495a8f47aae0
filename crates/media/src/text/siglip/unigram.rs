//! SentencePiece's unigrams: the pieces of a text whose sum of scores is the largest.
//!
//! The sums are rounded to f32 where the original rounds them. In f64, as in the crate `tokenizers`,
//! repeated letters, whose divisions are equally good, would be divided in other ways.
//!
//! Source: google/sentencepiece (0.2.1) `src/unigram_model.cc` (`EncodeOptimized`),
//! `src/sentencepiece_processor.cc` (`PopulateSentencePieceText`).

use std::collections::HashMap;

use super::proto::{Model, PieceKind};

/// What an unknown letter costs beyond the least likely piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// The pieces of a model.
pub(super) struct Unigrams {
    ids: HashMap<String, u32>,
    scores: Vec<f32>,
    /// Children of the nodes of a trie over bytes; the root is 0.
    children: HashMap<(u32, u8), u32>,
    /// The piece at a node of the trie.
    pieces: Vec<Option<u32>>,
    unknown: u32,
    unknown_score: f32,
}

/// The best division of a text up to a place.
#[derive(Clone, Copy)]
struct Best {
    score: f32,
    /// Where its last piece starts, and which one it is; none if nothing ends here.
    last: Option<(usize, u32)>,
}

impl Unigrams {
    /// The pieces of a model; the error says what was found.
    pub(super) fn new(model: &Model) -> Result<Self, String> {
        if model.kind != 1 {
            return Err(format!("`model_type` {}", model.kind));
        }
        if model.byte_fallback {
            return Err("`byte_fallback` true".to_owned());
        }
        let mut unigrams = Self {
            ids: HashMap::new(),
            scores: Vec::new(),
            children: HashMap::new(),
            pieces: vec![None],
            unknown: 0,
            unknown_score: 0.0,
        };
        let (mut least, mut unknown) = (f32::MAX, None);
        for (piece, id) in model.pieces.iter().zip(0..) {
            if unigrams.ids.insert(piece.text.clone(), id).is_some() {
                return Err(format!("the piece {:?} twice", piece.text));
            }
            unigrams.scores.push(piece.score);
            match piece.kind {
                PieceKind::Normal => {
                    least = least.min(piece.score);
                    unigrams.insert(&piece.text, id);
                }
                PieceKind::Unknown => unknown = Some(id),
                PieceKind::Control | PieceKind::Unused => {}
                PieceKind::UserDefined | PieceKind::Byte => {
                    return Err(format!("the piece {:?} of type {:?}", piece.text, piece.kind));
                }
            }
        }
        unigrams.unknown = unknown.ok_or_else(|| "no piece for unknown letters".to_owned())?;
        unigrams.unknown_score = least - UNKNOWN_PENALTY;
        Ok(unigrams)
    }

    fn insert(&mut self, text: &str, id: u32) {
        let mut node = 0;
        for byte in text.bytes() {
            // As many nodes as bytes of the file, which is limited.
            let next = self.pieces.len() as u32;
            node = *self.children.entry((node, byte)).or_insert(next);
            if node == next {
                self.pieces.push(None);
            }
        }
        self.pieces[node as usize] = Some(id);
    }

    /// The id of a piece of any kind.
    pub(super) fn id(&self, piece: &str) -> Option<u32> {
        self.ids.get(piece).copied()
    }

    /// How many pieces there are.
    pub(super) fn len(&self) -> usize {
        self.scores.len()
    }

    /// The ids of a normalised text. Unknown letters in a row are one token.
    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        let bytes = text.as_bytes();
        let mut best = vec![Best { score: 0.0, last: None }; bytes.len() + 1];
        for (start, letter) in text.char_indices() {
            let here = best[start].score;
            let single = start + letter.len_utf8();
            let mut has_single = false;
            let mut node = 0;
            for (end, byte) in bytes.iter().enumerate().skip(start) {
                let Some(next) = self.children.get(&(node, *byte)) else { break };
                node = *next;
                if let Some(id) = self.pieces[node as usize] {
                    has_single |= end + 1 == single;
                    best[end + 1].offer(here + self.scores[id as usize], start, id);
                }
            }
            if !has_single {
                best[single].offer(here + self.unknown_score, start, self.unknown);
            }
        }
        let mut ids = Vec::new();
        let mut end = bytes.len();
        while let Some((start, id)) = best[end].last {
            if id != self.unknown || ids.last() != Some(&id) {
                ids.push(id);
            }
            end = start;
        }
        ids.reverse();
        ids
    }
}

impl Best {
    /// Takes a division that is better than the one so far.
    fn offer(&mut self, score: f32, start: usize, id: u32) {
        if self.last.is_none() || score > self.score {
            *self = Self { score, last: Some((start, id)) };
        }
    }
}
