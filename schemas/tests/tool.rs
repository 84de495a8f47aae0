//! The tool: the committed reference page and views are up to date, and files are called by name.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use assert_cmd::Command;
use common::{label_row, pair_columns, parquet_bytes, put};
use schemas::labels::{LabelsSchema, LabelsWriter};
use schemas::reference::{duckdb_views, reference_page};
use tempfile::tempdir;

fn tool(arguments: &[&str]) -> (bool, String) {
    let output = Command::cargo_bin("schemas").unwrap().args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn the_generated_files_are_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (fine, text) = tool(&["docs", "--check", "--root", root.to_str().unwrap()]);
    assert!(fine, "{text}");
}

#[test]
fn outdated_files_are_named_and_made() {
    let folder = tempdir().unwrap();
    let root = folder.path().to_str().unwrap();
    put(folder.path(), "docs/labels-schema.md", b"old");
    put(folder.path(), "schemas/duckdb/labels.sql", b"old");
    let (fine, text) = tool(&["docs", "--check", "--root", root]);
    assert!(!fine && text.contains("docs/labels-schema.md, schemas/duckdb/labels.sql"), "{text}");
    assert!(tool(&["docs", "--root", root]).0);
    assert!(tool(&["docs", "--check", "--root", root]).0);
    for name in ["latents", "evaluation"]
        .map(|name| [format!("docs/{name}-schema.md"), format!("schemas/duckdb/{name}.sql")])
        .concat()
    {
        assert!(folder.path().join(&name).exists(), "{name}");
    }
}

#[test]
fn files_are_called_by_what_they_are() {
    let folder = tempdir().unwrap();
    let labels = folder.path().join("labels.parquet");
    let schema = LabelsSchema::new(&["clip", "hps"]).unwrap();
    let write = |ids: [i64; 2]| {
        let mut writer = LabelsWriter::create(&labels, &schema, &BTreeMap::new()).unwrap();
        ids.into_iter().for_each(|id| writer.write(&label_row(id)).unwrap());
        writer.finish().unwrap();
        tool(&["check", labels.to_str().unwrap()])
    };
    let (fine, text) = write([1, 2]);
    assert!(fine && text.contains("valid labels, 2 rows, scorers clip, hps"), "{text}");
    let (fine, text) = write([1, 1]);
    assert!(!fine && text.contains("\"pair 1\" twice"), "{text}");

    let (fine, text) = tool(&["sql", labels.to_str().unwrap()]);
    assert!(fine && text.contains("'hps'") && text.contains("labels.parquet')"), "{text}");
    let (fine, text) = tool(&["sql", folder.path().to_str().unwrap()]);
    assert!(!fine && text.contains("hint: name labels.parquet, or the folder"), "{text}");
    for (name, view) in [("scores.parquet", "recheck_win_rates"), ("latents-0.parquet", "captions")]
    {
        let file = put(folder.path(), name, b"");
        let (fine, text) = tool(&["sql", folder.path().to_str().unwrap()]);
        assert!(fine && text.contains(view), "{text}");
        std::fs::remove_file(file).unwrap();
    }

    let pairs = put(folder.path(), "p.parquet", &parquet_bytes(pair_columns(3), 4));
    let (fine, text) = tool(&["check", pairs.to_str().unwrap()]);
    assert!(fine && text.contains("valid pairs with images, 3 rows"), "{text}");

    let neither = parquet_bytes(common::without(pair_columns(3), "caption"), 4);
    let neither = put(folder.path(), "n.parquet", &neither);
    let (fine, text) = tool(&["check", neither.to_str().unwrap()]);
    assert!(!fine && text.contains("neither labels nor pairs"), "{text}");
}

#[test]
fn views_name_every_scorer_and_quote_the_path() {
    let views = duckdb_views(&["clip", "fifth"], "it's/labels.parquet");
    assert!(views.contains("read_parquet('it''s/labels.parquet')"));
    for name in ["'clip'", "'fifth'", "fifth_again", "coalesce(clip_again, 0) +\n"] {
        assert!(views.contains(name), "{name} in {views}");
    }
    assert!(!views.contains("{scorer}") && !views.contains("--each"));
    assert!(reference_page().contains("| `{scorer}_vote` | int8 | yes |"));
}
