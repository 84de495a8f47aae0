//! Reads a column of images beside the small columns, as slices of its pages: nothing is copied,
//! and large pages need not be in memory ([`crate::pages`]).

use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Type;
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ParquetMetaData;
use parquet::schema::types::ColumnDescPtr;

use crate::checksums::CheckedFile;
use crate::pages::Pages;

/// The images of a column in some row groups, in order.
pub(crate) struct ImageColumn {
    file: Arc<CheckedFile>,
    metadata: Arc<ParquetMetaData>,
    /// The row groups that are left.
    groups: std::vec::IntoIter<usize>,
    leaf: usize,
    descriptor: ColumnDescPtr,
    /// The reader of the current row group.
    reader: Option<ColumnReaderImpl<ByteArrayType>>,
}

impl ImageColumn {
    /// The leaf column `leaf` of the row groups `groups`. With an index of its pages in `metadata`,
    /// pages that are skipped are not touched.
    pub(crate) fn new(
        file: CheckedFile,
        metadata: &Arc<ParquetMetaData>,
        groups: Vec<usize>,
        leaf: usize,
    ) -> Result<Self> {
        Ok(Self {
            file: Arc::new(file),
            metadata: Arc::clone(metadata),
            groups: groups.into_iter(),
            leaf,
            descriptor: metadata.file_metadata().schema_descr().column(leaf),
            reader: None,
        })
    }

    /// The next `count` images; null if the image or the struct around it is null.
    pub(crate) fn take(&mut self, count: usize) -> Result<Vec<Option<Bytes>>> {
        // A column of type "null" holds no bytes.
        if self.descriptor.physical_type() != Type::BYTE_ARRAY {
            return Ok(vec![None; count]);
        }
        let full = self.descriptor.max_def_level();
        let mut images = Vec::with_capacity(count);
        while images.len() < count {
            let (mut levels, mut values) = (Vec::new(), Vec::<ByteArray>::new());
            let wanted = count - images.len();
            let Some(reader) = self.reader()? else {
                let missing = format!("a column of images ends {wanted} rows before the others");
                return Err(ParquetError::EOF(missing));
            };
            let (records, ..) =
                reader.read_records(wanted, Some(&mut levels), None, &mut values)?;
            if records == 0 {
                self.reader = None;
                continue;
            }
            let mut values = values.into_iter();
            let mut next = || -> Result<Bytes> {
                let ends = || ParquetError::General("fewer images than rows".to_owned());
                values.next().map(Bytes::from_owner).ok_or_else(ends)
            };
            for record in 0..records {
                let present = full == 0 || levels.get(record) == Some(&full);
                images.push(if present { Some(next()?) } else { None });
            }
        }
        Ok(images)
    }

    /// Skips `count` images.
    pub(crate) fn skip(&mut self, mut count: usize) -> Result<()> {
        if self.descriptor.physical_type() != Type::BYTE_ARRAY {
            return Ok(());
        }
        while count > 0 {
            let Some(reader) = self.reader()? else { break };
            match reader.skip_records(count)? {
                0 => self.reader = None,
                skipped => count -= skipped.min(count),
            }
        }
        Ok(())
    }

    /// The reader of the current row group, or of the next one; none at the end.
    fn reader(&mut self) -> Result<Option<&mut ColumnReaderImpl<ByteArrayType>>> {
        if self.reader.is_none() {
            let Some(number) = self.groups.next() else { return Ok(None) };
            let Some(group) = self.metadata.row_groups().get(number) else { return Ok(None) };
            let index = self.metadata.page_index();
            let index = index.and_then(|index| index.page_locations(number, self.leaf));
            let pages = Pages::open(&self.file, group, self.leaf, index.cloned())?;
            let descriptor = Arc::clone(&self.descriptor);
            self.reader = Some(ColumnReaderImpl::new(descriptor, Box::new(pages)));
        }
        Ok(self.reader.as_mut())
    }
}
