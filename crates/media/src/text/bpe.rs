//! Byte-pair encoding as open_clip does it: the bytes of a word, the last one marked as the end of
//! a word, joined pair by pair in the order of the merges.
//!
//! [`HuggingFaceTokenizer`](super::HuggingFaceTokenizer) runs the `tokenizers` library, as
//! transformers does, and it is not the same algorithm. This one joins every occurrence of the pair
//! with the lowest rank before it looks at the pairs that arose; the library looks after each
//! single occurrence. The two differ for a list of merges in which a merge precedes one that
//! makes its parts, and each tokenizer is exact only with its own.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{PoisonError, RwLock};

use super::byte_alphabet::byte_characters;
use super::vocabulary::{END_OF_WORD, Vocabulary};

/// How many words are kept with their tokens. Captions share most of their words.
const CACHED_WORDS: usize = 1 << 16;
/// Longer words are not kept.
const LONGEST_CACHED_WORD: usize = 32;

/// The merges, on token ids.
pub(super) struct BytePairEncoder {
    /// Id of each byte inside a word, and of each byte that ends one.
    inner: [u32; 256],
    last: [u32; 256],
    /// (left, right) to (rank of the merge, id of the joined token).
    merges: HashMap<(u32, u32), (u32, u32)>,
    cache: RwLock<HashMap<Box<str>, Box<[u32]>>>,
}

impl BytePairEncoder {
    /// Looks up the ids of all bytes and merges. The error is the first token that the vocabulary
    /// lacks.
    pub(super) fn new(vocabulary: &Vocabulary) -> Result<Self, String> {
        let id = |token: &str| vocabulary.ids.get(token).copied().ok_or_else(|| token.to_owned());
        let (mut inner, mut last) = ([0; 256], [0; 256]);
        for (byte, character) in byte_characters().into_iter().enumerate() {
            inner[byte] = id(character.encode_utf8(&mut [0; 4]))?;
            last[byte] = id(&format!("{character}{END_OF_WORD}"))?;
        }
        let mut merges = HashMap::with_capacity(vocabulary.merges.len());
        for (rank, (left, right)) in (0..).zip(&vocabulary.merges) {
            let joined = id(&format!("{left}{right}"))?;
            // of a merge listed twice the later rank counts, as in a Python dict
            merges.insert((id(left)?, id(right)?), (rank, joined));
        }
        Ok(Self { inner, last, merges, cache: RwLock::default() })
    }

    /// Appends the tokens of one word.
    pub(super) fn encode(&self, word: &str, tokens: &mut Vec<u32>) {
        let cacheable = word.len() <= LONGEST_CACHED_WORD;
        // the cache holds only finished entries, so one left by a thread that panicked is sound
        if cacheable
            && let Some(known) = self.cache.read().unwrap_or_else(PoisonError::into_inner).get(word)
        {
            tokens.extend_from_slice(known);
            return;
        }
        let merged = self.merge(word.as_bytes());
        tokens.extend_from_slice(&merged);
        if cacheable {
            let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
            if cache.len() < CACHED_WORDS {
                cache.insert(word.into(), merged.into_boxed_slice());
            }
        }
    }

    /// Joins, round by round, all pairs of the lowest rank from left to right, as the original
    /// does; a heap of candidates keeps long words cheap.
    fn merge(&self, word: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = word.iter().map(|&byte| self.inner[usize::from(byte)]).collect();
        if let (Some(id), Some(&byte)) = (ids.last_mut(), word.last()) {
            *id = self.last[usize::from(byte)];
        }
        // a doubly linked list over positions; a joined token stays at its left position
        let end = ids.len();
        let mut next: Vec<usize> = (1..=end).collect();
        let mut previous: Vec<usize> = (0..end).map(|at| at.wrapping_sub(1)).collect();
        let mut alive = vec![true; end];
        let candidate = |ids: &[u32], left: usize, right: usize| {
            let pair = (*ids.get(left)?, *ids.get(right)?);
            self.merges.get(&pair).map(|&(rank, joined)| Reverse((rank, left, pair, joined)))
        };
        let mut heap: BinaryHeap<_> =
            (1..end).filter_map(|right| candidate(&ids, right - 1, right)).collect();
        let mut made = Vec::new();
        while let Some(&Reverse((round, ..))) = heap.peek() {
            while let Some(&Reverse((rank, left, pair, joined))) = heap.peek()
                && rank == round
            {
                heap.pop();
                let right = next[left];
                if !alive[left] || right == end || (ids[left], ids[right]) != pair {
                    continue; // one of the two was joined to something else meanwhile
                }
                ids[left] = joined;
                alive[right] = false;
                next[left] = next[right];
                if next[left] < end {
                    previous[next[left]] = left;
                }
                made.push(left);
            }
            for left in made.drain(..) {
                if alive[left] {
                    heap.extend(candidate(&ids, previous[left], left));
                    heap.extend(candidate(&ids, left, next[left]));
                }
            }
        }
        ids.iter().zip(alive).filter_map(|(&id, alive)| alive.then_some(id)).collect()
    }
}
