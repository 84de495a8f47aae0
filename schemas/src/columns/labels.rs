//! The columns of `labels.parquet`.

use super::{Column, ColumnType};

/// How many columns come before those of the scorers in `labels.parquet`.
pub(crate) const COLUMNS_BEFORE_SCORERS: usize = 7;
/// How many columns each scorer has in `labels.parquet`.
pub(crate) const COLUMNS_PER_SCORER: usize = 3;
/// The end of the name of a vote column, by which a reader finds the scorers of a file.
pub(crate) const VOTE_SUFFIX: &str = "_vote";

/// The columns of `labels.parquet` for these scorers, in file order.
pub fn labels_columns<S: AsRef<str>>(scorers: &[S]) -> Vec<Column> {
    use ColumnType::{Category, Float32, Float64, Int8, Int64, Text};
    let mut columns = vec![
        Column::new(
            "pair_id",
            Text,
            false,
            "stable name of the pair, unique in the file: the input's `ranking_id` if no earlier row \
             has the same, else `source_file:source_row`, with `#2`, `#3` behind it if an earlier \
             row has that too",
        ),
        Column::new("source_file", Category, false, "input file the pair comes from"),
        Column::new("source_row", Int64, false, "row of the pair in that file, from 0"),
        Column::new("caption", Text, true, "prompt of both images, as in the input"),
        Column::new("image_0_uid", Text, true, "name of image 0, as in the input"),
        Column::new("image_1_uid", Text, true, "name of image 1, as in the input"),
        Column::new(
            "human_label_0",
            Float64,
            true,
            "the human label, `label_0` of the input: 1 if image 0 was preferred, 0 if image 1, 0.5 \
             for a tie",
        ),
    ];
    for scorer in scorers {
        let scorer = scorer.as_ref();
        for image in [0, 1] {
            columns.push(Column::new(
                format!("{scorer}_score_{image}"),
                Float32,
                true,
                format!(
                    "raw score of image {image} by `{scorer}`: a cosine for a clip-type scorer, \
                     the head's output for an aesthetic one; null if the scorer failed there"
                ),
            ));
        }
        columns.push(Column::new(
            format!("{scorer}{VOTE_SUFFIX}"),
            Int8,
            true,
            format!(
                "vote of `{scorer}`: +1 if `{scorer}_score_0` ≥ `{scorer}_score_1` (Eq. 6), \
                 else -1; null if the scorer does not vote; a scorer that compares the two images \
                 votes without scores"
            ),
        ));
    }
    columns.extend([
        Column::new(
            "vote_sum",
            Int8,
            true,
            "sum of the votes; null if `status` is not `ok`, except that with `--missing vote` a \
             `partial` row has the sum of the votes that are there",
        ),
        Column::new(
            "consensus",
            Int8,
            true,
            "sign of `vote_sum` (Eq. 7): +1 for image 0, -1 for image 1, 0 for a tie; null if \
             `vote_sum` is",
        ),
        Column::new(
            "status",
            Text,
            false,
            "`ok`, or why a vote or all votes are missing (see below)",
        ),
        Column::new("error", Text, true, "detail of the failure, as a message; null if `ok`"),
    ]);
    columns
}

/// Whether a number is a human label: 1 for image 0, 0 for image 1, 0.5 for a tie.
pub fn is_human_label(number: f64) -> bool {
    number == 0.0 || number == 0.5 || number == 1.0
}
