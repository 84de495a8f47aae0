//! What the lists of a cache hold: dtype and shape.

use crate::columns::{Column, StoredFloat, captions_columns, latents_columns};

/// The most numbers of one list: 256 MiB in single precision.
const MAX_NUMBERS: i64 = 1 << 26;

/// How the latents of a part are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentsLayout {
    /// The dtype.
    pub stored: StoredFloat,
    /// Channels, height and width of the latents.
    pub shape: [i64; 3],
    /// Whether it also holds horizontally flipped images.
    pub flipped: bool,
}

impl LatentsLayout {
    /// The columns, in file order.
    pub fn columns(&self) -> Vec<Column> {
        latents_columns(self.stored, self.flipped)
    }

    /// The numbers of one list.
    pub fn numbers(&self) -> usize {
        numbers(&self.shape)
    }

    /// The bytes of all lists of one row.
    pub fn row_bytes(&self) -> usize {
        let lists = if self.flipped { 8 } else { 4 };
        self.numbers().saturating_mul(self.stored.bytes()).saturating_mul(lists)
    }
}

/// How the captions of a part are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptionsLayout {
    /// The dtype.
    pub stored: StoredFloat,
    /// Tokens, and features of each.
    pub shape: [i64; 2],
    /// Features of the pooled prompt embedding, for SDXL.
    pub pooled: Option<i64>,
}

impl CaptionsLayout {
    /// The columns, in file order.
    pub fn columns(&self) -> Vec<Column> {
        captions_columns(self.stored)
    }

    /// The numbers of a list of prompt embeddings.
    pub fn numbers(&self) -> usize {
        numbers(&self.shape)
    }

    /// The numbers of a pooled prompt embedding.
    pub fn pooled_numbers(&self) -> Option<usize> {
        self.pooled.map(|length| numbers(&[length]))
    }

    /// The bytes of all lists of one row.
    pub fn row_bytes(&self) -> usize {
        let numbers = self.numbers().saturating_add(self.pooled_numbers().unwrap_or(0));
        numbers.saturating_mul(self.stored.bytes())
    }
}

fn numbers(shape: &[i64]) -> usize {
    let product = shape.iter().fold(1_i64, |product, side| product.saturating_mul(*side));
    usize::try_from(product).unwrap_or(0)
}

/// `4,64,64`
pub(super) fn written(sides: &[i64]) -> String {
    sides.iter().map(i64::to_string).collect::<Vec<_>>().join(",")
}

/// Reads a shape that [`written`] wrote: positive sides, and not too many numbers together.
pub(super) fn read(text: &str, allowed: &[usize]) -> Result<Vec<i64>, String> {
    let sides: Result<Vec<i64>, _> = text.split(',').map(str::parse::<i64>).collect();
    let possible = |sides: &Vec<i64>| {
        let product = sides.iter().try_fold(1_i64, |product, &side| product.checked_mul(side));
        allowed.contains(&sides.len())
            && sides.iter().all(|&side| side > 0)
            && product.is_some_and(|product| product <= MAX_NUMBERS)
    };
    sides.ok().filter(possible).ok_or_else(|| {
        format!("expected a shape of {allowed:?} sides and at most {MAX_NUMBERS} numbers, found {text:?}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_written_and_read() {
        assert_eq!(read(&written(&[4, 64, 8]), &[3]), Ok(vec![4, 64, 8]));
        for wrong in ["", "4", "4,64", "4,-1,64", "4,0,64", "4,x,2", "99999999,99999999,2"] {
            assert!(read(wrong, &[3]).is_err(), "{wrong:?}");
        }
        let layout =
            LatentsLayout { stored: StoredFloat::Float16, shape: [4, 8, 8], flipped: true };
        assert_eq!((layout.numbers(), layout.row_bytes()), (256, 256 * 2 * 8));
        assert_eq!(layout.columns().len(), 7 + 2 * (4 + 4) + 2);
    }
}
