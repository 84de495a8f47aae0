//! Reads columns of another type than ours if no value changes by it: pandas turns integers with
//! gaps into floats, DuckDB literals into decimals.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, StringViewBuilder, new_null_array,
};
use arrow::compute::kernels::cmp::not_distinct;
use arrow::compute::{CastOptions, cast, cast_with_options, nullif};
use arrow::datatypes::{DataType, Float64Type};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// The bytes of a UUID.
const UUID_BYTES: i32 = 16;
/// The largest precision of a 128-bit decimal.
const MOST_DIGITS: u8 = 38;

/// How a value is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// UTF-8 text, as views: from text of any kind and from bytes that are UTF-8.
    Text,
    /// As [`Target::Text`], and the digits of whole numbers, and UUIDs.
    Name,
    /// A number, or true and false as 1 and 0.
    Number(&'a DataType),
    /// True or false, or the numbers 1 and 0.
    Boolean,
}

/// A value that would change.
#[derive(Debug)]
pub(crate) struct Inexact {
    /// Its position in the array.
    pub(crate) index: usize,
    /// The value, as text.
    pub(crate) found: String,
}

/// Why an array could not be read.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A value would be changed.
    Inexact(Inexact),
    /// The Arrow library failed.
    Arrow(ArrowError),
}

impl From<ArrowError> for Failure {
    fn from(error: ArrowError) -> Self {
        Self::Arrow(error)
    }
}

/// Whether some values of a stored type may be read so; [`read`] decides which.
pub(crate) fn is_possible(stored: &DataType, target: Target<'_>) -> bool {
    let number = stored.is_numeric() || stored.is_decimal();
    match (target, stored) {
        (_, DataType::Null) => true,
        (Target::Text | Target::Name, DataType::Dictionary(_, values)) => {
            is_possible(values, target)
        }
        (Target::Text | Target::Name, text) if is_text(text) || is_bytes(text) => true,
        (Target::Name, DataType::FixedSizeBinary(UUID_BYTES)) => true,
        (Target::Name, _) => number,
        (Target::Number(_) | Target::Boolean, DataType::Boolean) => true,
        (Target::Number(_) | Target::Boolean, _) => number,
        _ => false,
    }
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_bytes(kind: &DataType) -> bool {
    matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

/// Reads an array, to `Utf8View`, the number type or `Boolean`.
///
/// NaN counts as null if the target has no NaN: pandas writes a gap so.
pub(crate) fn read(array: &ArrayRef, target: Target<'_>) -> Result<ArrayRef, Failure> {
    let kind = array.data_type();
    let wanted = match target {
        Target::Text | Target::Name => &DataType::Utf8View,
        Target::Number(wanted) => wanted,
        Target::Boolean => &DataType::Boolean,
    };
    match target {
        _ if kind == wanted => Ok(Arc::clone(array)),
        _ if *kind == DataType::Null => Ok(new_null_array(wanted, array.len())),
        Target::Text | Target::Name if is_bytes(kind) => bytes_as_text(array),
        Target::Name if matches!(kind, DataType::FixedSizeBinary(_)) => Ok(uuids(array)),
        Target::Text | Target::Name if !kind.is_numeric() && !kind.is_decimal() => {
            Ok(cast(array, wanted)?)
        }
        Target::Text | Target::Name => {
            let whole = match kind {
                float if float.is_floating() => exactly(array, &DataType::Int64)?,
                decimal if decimal.is_decimal() => {
                    exactly(array, &DataType::Decimal128(MOST_DIGITS, 0))?
                }
                _ => Arc::clone(array),
            };
            Ok(cast(&whole, wanted)?)
        }
        Target::Number(_) | Target::Boolean => exactly(array, wanted),
    }
}

/// Casts there and back, and rejects values that do not come back unchanged.
fn exactly(array: &ArrayRef, wanted: &DataType) -> Result<ArrayRef, Failure> {
    let array = match array.data_type().is_floating() && !wanted.is_floating() {
        true => without_nan(array)?,
        false => Arc::clone(array),
    };
    // A value out of range becomes null, which differs from what it was.
    let options = CastOptions { safe: true, ..CastOptions::default() };
    let there = cast_with_options(&array, wanted, &options)?;
    let back = cast_with_options(&there, array.data_type(), &options)?;
    let equal = not_distinct(&array, &back)?;
    match (0..equal.len()).find(|&index| !equal.value(index)) {
        None => Ok(there),
        Some(index) => Err(inexact(&array, index)),
    }
}

fn inexact(array: &ArrayRef, index: usize) -> Failure {
    let options = FormatOptions::default();
    match ArrayFormatter::try_new(array.as_ref(), &options) {
        Ok(formatter) => {
            Failure::Inexact(Inexact { index, found: formatter.value(index).to_string() })
        }
        Err(error) => error.into(),
    }
}

fn without_nan(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let numbers = cast(array, &DataType::Float64)?;
    let numbers: &Float64Array = numbers.as_primitive::<Float64Type>();
    let missing: BooleanArray =
        numbers.iter().map(|number| Some(number.is_some_and(f64::is_nan))).collect();
    nullif(array, &missing)
}

fn bytes_as_text(array: &ArrayRef) -> Result<ArrayRef, Failure> {
    let views = cast(array, &DataType::BinaryView)?;
    let bytes = views.as_binary_view();
    let mut texts = StringViewBuilder::with_capacity(bytes.len());
    for (index, value) in bytes.iter().enumerate() {
        match value.map(std::str::from_utf8).transpose() {
            Ok(text) => texts.append_option(text),
            Err(_) => return Err(inexact(array, index)),
        }
    }
    Ok(Arc::new(texts.finish()))
}

/// `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`, as all libraries print them.
fn uuids(array: &ArrayRef) -> ArrayRef {
    let mut texts = StringViewBuilder::with_capacity(array.len());
    for value in array.as_fixed_size_binary() {
        texts.append_option(value.map(|bytes| {
            let mut text = String::with_capacity(36);
            for (position, byte) in bytes.iter().enumerate() {
                if matches!(position, 4 | 6 | 8 | 10) {
                    text.push('-');
                }
                text.extend([byte >> 4, byte & 15].map(|digit| {
                    // A half byte is below 16.
                    char::from_digit(u32::from(digit), 16).unwrap_or('0')
                }));
            }
            text
        }));
    }
    Arc::new(texts.finish())
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BinaryArray, Decimal128Array, FixedSizeBinaryArray, Float16Array, Float32Array, Int8Array,
        Int64Array, NullArray, StringArray, UInt64Array,
    };
    use half::f16;

    use super::*;

    fn texts(
        array: impl Array + 'static,
        target: Target<'_>,
    ) -> Result<Vec<Option<String>>, usize> {
        let array: ArrayRef = Arc::new(array);
        assert!(is_possible(array.data_type(), target));
        match read(&array, target) {
            Ok(found) => {
                let found = found.as_string_view().iter();
                Ok(found.map(|text| text.map(str::to_owned)).collect())
            }
            Err(Failure::Inexact(inexact)) => Err(inexact.index),
            Err(Failure::Arrow(error)) => panic!("{error}"),
        }
    }

    fn some(values: &[&str]) -> Vec<Option<String>> {
        values.iter().map(|text| Some((*text).to_owned())).collect()
    }

    #[test]
    fn names_are_read_of_whole_numbers_and_uuids() {
        assert_eq!(texts(Int64Array::from(vec![-3, 7]), Target::Name), Ok(some(&["-3", "7"])));
        let large = UInt64Array::from(vec![u64::MAX]);
        assert_eq!(texts(large, Target::Name), Ok(some(&["18446744073709551615"])));
        let gap = Float64Array::from(vec![Some(5.0), Some(f64::NAN), None, Some(1e15)]);
        let expected = vec![Some("5".into()), None, None, Some("1000000000000000".into())];
        assert_eq!(texts(gap, Target::Name), Ok(expected));
        assert_eq!(texts(Float32Array::from(vec![1.0, 1.5]), Target::Name), Err(1));
        assert_eq!(texts(Float64Array::from(vec![1e300]), Target::Name), Err(0));
        let decimal = |values: Vec<i128>| {
            Decimal128Array::from(values).with_precision_and_scale(10, 2).unwrap()
        };
        assert_eq!(texts(decimal(vec![500, 1200]), Target::Name), Ok(some(&["5", "12"])));
        assert_eq!(texts(decimal(vec![500, 1201]), Target::Name), Err(1));
        let bytes: Vec<u8> = (0..16).map(|byte| byte * 17).collect();
        let uuid = FixedSizeBinaryArray::try_from_iter([bytes].into_iter()).unwrap();
        let expected = some(&["00112233-4455-6677-8899-aabbccddeeff"]);
        assert_eq!(texts(uuid, Target::Name), Ok(expected));
    }

    #[test]
    fn text_is_read_of_bytes_that_are_text() {
        let bytes = BinaryArray::from_iter_values(["a fox", "été"]);
        assert_eq!(texts(bytes, Target::Text), Ok(some(&["a fox", "été"])));
        let bytes = BinaryArray::from_iter_values([b"a".as_slice(), b"\xff\xd8"]);
        assert_eq!(texts(bytes, Target::Text), Err(1));
        assert_eq!(texts(NullArray::new(2), Target::Text), Ok(vec![None, None]));
        assert!(!is_possible(&DataType::Int64, Target::Text));
        assert!(!is_possible(&DataType::Boolean, Target::Name));
        assert!(!is_possible(&DataType::Utf8, Target::Number(&DataType::Float64)));
    }

    #[test]
    fn numbers_are_read_where_nothing_is_lost() {
        let number = |array: ArrayRef, wanted: &DataType| match read(&array, Target::Number(wanted))
        {
            Ok(found) => {
                let found = cast(&found, &DataType::Float64).unwrap();
                Ok(found.as_primitive::<Float64Type>().iter().collect::<Vec<_>>())
            }
            Err(Failure::Inexact(inexact)) => Err(inexact.found),
            Err(Failure::Arrow(error)) => panic!("{error}"),
        };
        let double = DataType::Float64;
        let bools: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]));
        assert_eq!(number(bools, &double), Ok(vec![Some(1.0), Some(0.0), None]));
        let halves: ArrayRef = Arc::new(Float16Array::from(vec![f16::from_f32(0.5)]));
        assert_eq!(number(halves, &double), Ok(vec![Some(0.5)]));
        let tenths = Decimal128Array::from(vec![10, 5, 0]).with_precision_and_scale(2, 1).unwrap();
        assert_eq!(number(Arc::new(tenths), &double), Ok(vec![Some(1.0), Some(0.5), Some(0.0)]));
        let votes: ArrayRef = Arc::new(Float64Array::from(vec![Some(-1.0), Some(f64::NAN)]));
        assert_eq!(number(votes, &DataType::Int8), Ok(vec![Some(-1.0), None]));
        let large: ArrayRef = Arc::new(Int64Array::from(vec![1, 300]));
        assert_eq!(number(large, &DataType::Int8), Err("300".to_owned()));
        let tenth: ArrayRef = Arc::new(Float64Array::from(vec![0.5, 0.1]));
        assert_eq!(number(tenth, &DataType::Float32), Err("0.1".to_owned()));
        let flags: ArrayRef = Arc::new(Int8Array::from(vec![Some(1), Some(0), None]));
        let read_flags = read(&flags, Target::Boolean).unwrap();
        assert_eq!(
            read_flags.as_boolean().iter().collect::<Vec<_>>(),
            [Some(true), Some(false), None]
        );
        let flags: ArrayRef = Arc::new(Int8Array::from(vec![1, 2]));
        assert!(matches!(read(&flags, Target::Boolean), Err(Failure::Inexact(_))));
        let nan: ArrayRef = Arc::new(Float64Array::from(vec![f64::NAN]));
        assert!(number(nan, &DataType::Float32).unwrap()[0].unwrap().is_nan());
        let text: ArrayRef = Arc::new(StringArray::from(vec!["1"]));
        assert!(read(&text, Target::Text).is_ok());
    }
}
