//! Smaller forwards, for the rest of the run, once a device has run out of memory.

use std::cell::Cell;

use nn::NetworkError;
use nn::device::inference;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::error::ScorerError;

/// How many rows a forward may have after the device ran out of memory; `None` while it has not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLimits {
    /// Images per forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<usize>,
    /// Captions per forward; image-caption pairs of a network that reads both together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captions: Option<usize>,
}

/// [`MemoryLimits`] while a run finds them.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    pub(crate) images: Cell<Option<usize>>,
    pub(crate) captions: Cell<Option<usize>>,
}

impl Limits {
    pub(crate) fn get(&self) -> MemoryLimits {
        MemoryLimits { images: self.images.get(), captions: self.captions.get() }
    }
}

/// Runs `forward` on the batch, in pieces of at most `limit` rows. If the device has too little
/// memory for a piece, the limit becomes half of the piece for the rest of the run.
pub(crate) fn in_pieces<T>(
    batch: &[T],
    limit: &Cell<Option<usize>>,
    tower: &str,
    forward: &dyn Fn(&[T]) -> Result<Tensor, NetworkError>,
) -> Result<Tensor, ScorerError> {
    let failed = |batch: usize, source: NetworkError| ScorerError::Forward {
        tower: tower.to_owned(),
        batch,
        source,
    };
    let mut done = Vec::new();
    let mut rest = batch;
    loop {
        let rows = limit.get().map_or(rest.len(), |limit| limit.min(rest.len()));
        let (piece, others) = rest.split_at(rows);
        match inference(|| forward(piece)) {
            Ok(features) if others.is_empty() && done.is_empty() => return Ok(features),
            Ok(features) => {
                done.push(features);
                if others.is_empty() {
                    return Tensor::f_cat(&done, 0)
                        .map_err(|error| failed(batch.len(), error.into()));
                }
                rest = others;
            }
            Err(error) if error.is_out_of_memory() && rows > 1 => {
                limit.set(Some(rows / 2));
                tracing::warn!(
                    tower,
                    rows = rows / 2,
                    "the device has too little memory for {rows} rows at once; {} from now on",
                    rows / 2
                );
            }
            Err(source) => return Err(failed(rows, source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tch::{Kind, TchError};

    use super::*;

    /// A device with room for so many rows; the feature of a row is its number.
    fn device(
        room: usize,
        sizes: &RefCell<Vec<usize>>,
    ) -> impl Fn(&[i64]) -> Result<Tensor, NetworkError> {
        move |rows| {
            sizes.borrow_mut().push(rows.len());
            if rows.len() > room {
                return Err(
                    TchError::Torch("CUDA out of memory. Tried to allocate".to_owned()).into()
                );
            }
            Ok(Tensor::from_slice(rows).to_kind(Kind::Float).unsqueeze(-1))
        }
    }

    #[test]
    fn a_batch_that_does_not_fit_is_halved_once_for_all() {
        let (limit, sizes) = (Cell::new(None), RefCell::default());
        let run = |rows: &[i64]| {
            let features = in_pieces(rows, &limit, "tower", &device(3, &sizes)).unwrap();
            Vec::<f32>::try_from(features.view(-1)).unwrap()
        };
        let rows: Vec<i64> = (0..10).collect();
        let expected: Vec<f32> = (0..10).map(|row| row as f32).collect();
        assert_eq!(run(&rows), expected);
        assert_eq!(sizes.take(), [10, 5, 2, 2, 2, 2, 2]);
        assert_eq!(limit.get(), Some(2));
        // The next batch begins with what fitted.
        assert_eq!(run(&rows[..5]), expected[..5]);
        assert_eq!(sizes.take(), [2, 2, 1]);
        assert_eq!(run(&rows[..2]), expected[..2]);
        assert_eq!(sizes.take(), [2]);
    }

    #[test]
    fn a_single_row_that_does_not_fit_is_an_error() {
        let (limit, sizes) = (Cell::new(None), RefCell::default());
        let error = in_pieces(&[1, 2], &limit, "tower", &device(0, &sizes)).unwrap_err();
        assert!(error.to_string().starts_with("tower: a batch of 1 failed"), "{error}");
        assert_eq!(sizes.take(), [2, 1]);
    }
}
