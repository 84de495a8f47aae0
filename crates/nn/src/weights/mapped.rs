//! A file that is mapped into memory, and tensors over it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use tch::{Kind, Tensor};

use super::WeightsError;
use crate::shim;

/// A file mapped privately: a write changes a copy of the page, not the file.
#[derive(Debug)]
pub(super) struct MappedFile {
    path: PathBuf,
    map: MmapRaw,
}

impl MappedFile {
    /// Maps a file; an empty file is an error, because it holds no tensor.
    #[expect(unsafe_code, reason = "memory-mapping")]
    pub(super) fn open(path: &Path) -> Result<Arc<Self>, WeightsError> {
        let file = fs_err::File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(invalid(path, "expected a file, found a folder or a device"));
        }
        if metadata.len() == 0 {
            return Err(invalid(path, "the file is empty"));
        }
        // SAFETY: the mapping is private, so nothing we write reaches the file. That another
        // program changes the file meanwhile cannot be excluded by any means; the module's head
        // states it as a condition of use, as every reader that maps weights does.
        let map = unsafe { MmapOptions::new().map_copy(file.file()) }.map_err(|error| {
            std::io::Error::new(error.kind(), format!("{}: cannot map: {error}", path.display()))
        })?;
        Ok(Arc::new(Self { path: path.to_owned(), map: map.into() }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file. Used for headers, before any tensor of the file exists.
    #[expect(unsafe_code, reason = "reads the mapping")]
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping lives as long as self and is readable for its whole length. Readers
        // of headers finish before `tensor` hands out anything that could write.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr(), self.map.len()) }
    }

    /// A tensor over the file's own memory; one that is not aligned to its element is copied.
    /// Everything is checked, so any argument is safe.
    #[expect(unsafe_code, reason = "makes a tensor over the mapping")]
    pub(super) fn tensor(
        self: &Arc<Self>,
        offset: usize,
        kind: Kind,
        shape: &[i64],
        strides: &[i64],
    ) -> Result<Tensor, WeightsError> {
        let size = kind.elt_size_in_bytes();
        let end = span(shape, strides)
            .and_then(|elements| elements.checked_mul(size))
            .and_then(|bytes| bytes.checked_add(offset))
            .filter(|end| *end <= self.map.len());
        if end.is_none() {
            return Err(invalid(
                &self.path,
                format!("a tensor of shape {shape:?} reaches beyond the end of the file"),
            ));
        }
        let torch = |source| WeightsError::Torch { file: self.path.clone(), source };
        if shape.contains(&0) {
            return Tensor::f_empty(shape, (kind, tch::Device::Cpu)).map_err(torch);
        }
        // SAFETY: offset is at most the length of the mapping, as just checked.
        let data = unsafe { self.map.as_mut_ptr().add(offset) };
        if !data.addr().is_multiple_of(size) {
            return self.copied(offset, kind, shape, strides).map_err(torch);
        }
        // SAFETY: all elements lie inside the mapping (checked above), the pointer is aligned, and
        // the mapping is writable and lives as long as the Arc.
        unsafe { shim::tensor_over_memory(data, shape, strides, kind, Box::new(Arc::clone(self))) }
            .map_err(torch)
    }

    /// Releases the pages inside the `length` bytes from `offset`. A page that was written to is
    /// read from the file again.
    #[expect(unsafe_code, reason = "advises the kernel")]
    pub(super) fn release(&self, offset: usize, length: usize) {
        // A multiple of every page size.
        const STEP: usize = 64 << 10;
        let start = offset.next_multiple_of(STEP);
        let end = offset.saturating_add(length).min(self.map.len()) / STEP * STEP;
        #[cfg(unix)]
        if start < end {
            // SAFETY: the range lies in the mapping, which is private and of a file: its pages are
            // filled again from there. Failing costs memory, nothing else.
            let advice = memmap2::UncheckedAdvice::DontNeed;
            let _ = unsafe { self.map.unchecked_advise_range(advice, start, end - start) };
        }
    }

    /// The elements in aligned memory; `offset` and shape were checked by the caller.
    fn copied(
        &self,
        offset: usize,
        kind: Kind,
        shape: &[i64],
        strides: &[i64],
    ) -> Result<Tensor, tch::TchError> {
        let elements = span(shape, strides).unwrap_or(0);
        let bytes = elements * kind.elt_size_in_bytes();
        let data = self.bytes().get(offset..offset + bytes).unwrap_or_default();
        let flat = Tensor::f_from_data_size(data, &[elements as i64], kind)?;
        flat.f_as_strided(shape, strides, 0)
    }
}

/// How many elements lie between the first and the last one reached, both included; `None` if a
/// number is negative or too large.
pub(super) fn span(shape: &[i64], strides: &[i64]) -> Option<usize> {
    if shape.len() != strides.len() {
        return None;
    }
    if shape.contains(&0) {
        return Some(0);
    }
    let mut last = 0usize;
    for (size, stride) in shape.iter().zip(strides) {
        let steps = usize::try_from(*size).ok()?.checked_sub(1)?;
        last = last.checked_add(steps.checked_mul(usize::try_from(*stride).ok()?)?)?;
    }
    last.checked_add(1)
}

/// How many elements a shape has; `None` if a number is negative or too large.
pub(super) fn element_count(shape: &[i64]) -> Option<usize> {
    shape.iter().try_fold(1usize, |count, size| count.checked_mul(usize::try_from(*size).ok()?))
}

/// The strides of a tensor that lies in memory row by row. The caller has checked the shape with
/// [`element_count`].
pub(super) fn row_major_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1i64; shape.len()];
    for index in (1..shape.len()).rev() {
        strides[index - 1] = strides[index].saturating_mul(shape[index].max(1));
    }
    strides
}

pub(super) fn invalid(path: &Path, reason: impl Into<String>) -> WeightsError {
    WeightsError::Invalid { file: path.to_owned(), reason: reason.into() }
}
