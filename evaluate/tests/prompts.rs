//! Prompt sets in the layouts they are published in, and files that hold no prompts.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray};
use common::{Fixture, Generated as _, Run, model, pipeline};
use evaluate::prompts::{self, PromptSet, PromptSource};
use parquet::arrow::ArrowWriter;
use testkit::objects::ObjectStore;

fn read(fixture: &Fixture, source: &str) -> Result<Vec<PromptSet>, String> {
    let source: PromptSource = fixture.path(source).display().to_string().parse().unwrap();
    prompts::read(&[source]).map_err(|error| error.to_string())
}

/// The one set of a file.
#[track_caller]
fn one(fixture: &Fixture, source: &str) -> PromptSet {
    let mut sets = read(fixture, source).unwrap();
    assert_eq!(sets.len(), 1);
    sets.remove(0)
}

fn texts(set: &PromptSet) -> Vec<&str> {
    set.prompts.iter().map(|prompt| prompt.text.as_str()).collect()
}

fn categories(set: &PromptSet) -> Vec<Option<&str>> {
    set.prompts.iter().map(|prompt| prompt.category.as_deref()).collect()
}

fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

/// A row for each pair of images, as Pick-a-Pic has them.
fn pick_a_pic() -> Vec<u8> {
    let captions =
        ["pirate guinea pig", "a fox", "a fox", "pirate guinea pig", "the moon", "a fox"];
    let rows = captions.len() as i64;
    parquet(vec![
        ("are_different", Arc::new(Int64Array::from_iter_values(0..rows))),
        ("caption", Arc::new(StringArray::from(captions.to_vec()))),
        ("jpg_0", Arc::new(BinaryArray::from_iter_values((0..rows).map(|_| b"\xff\xd8")))),
        ("label_0", Arc::new(Int64Array::from_iter_values(0..rows))),
    ])
}

/// `PartiPrompts.tsv`: stray quotation marks, blanks, and notes that are often empty.
const PARTI: &str = "Prompt\tCategory\tChallenge\tNote\n\
    bond\tAbstract\tBasic\tBiology-inspired concepts with multiple meanings\n\
    A logo called \"The Rumbury Wanderers\"\tWorld Knowledge\tImagination\t\n\
    \"a wall. The word \"PEACE\tOutdoor Scenes\tComplex\t\n\
    a semi-truck. \tVehicles\tSimple Detail\tDescription of \"Dogs Playing Poker\"\n";

#[test]
fn partiprompts_are_read_raw() {
    let fixture = Fixture::new(&[]);
    fixture.put("PartiPrompts.tsv", PARTI.as_bytes());
    let set = one(&fixture, "PartiPrompts.tsv");
    assert_eq!((&*set.name, &*set.file, set.duplicates), ("PartiPrompts", "PartiPrompts.tsv", 0));
    let expected = [
        "bond",
        "A logo called \"The Rumbury Wanderers\"",
        "\"a wall. The word \"PEACE",
        "a semi-truck.",
    ];
    assert_eq!(texts(&set), expected);
    assert_eq!(set.prompts[2].category.as_deref(), Some("Outdoor Scenes"));
    assert!(set.prompts[3].id.starts_with("00004-"), "the header is no row: {:?}", set.prompts[3]);
    // A text file with the same prompts has the same ids.
    fixture.put("same.txt", expected.join("\n").as_bytes());
    let ids = |set: &PromptSet| set.prompts.iter().map(|p| p.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&one(&fixture, "same.txt")), ids(&set));

    let set = one(&fixture, "PartiPrompts.tsv,category=Challenge,name=parti");
    assert_eq!(set.name, "parti");
    assert_eq!(set.prompts[3].category.as_deref(), Some("Simple Detail"));
    fixture.put("windows.tsv", PARTI.replace('\n', "\r\n").as_bytes());
    assert_eq!(texts(&one(&fixture, "windows.tsv")), expected);
}

/// [`PARTI`] as `pandas.read_csv(…, sep="\t", quoting=3).to_csv(…, sep="\t", index=False)` saves
/// it.
const PARTI_OF_PANDAS: &str = "Prompt\tCategory\tChallenge\tNote\n\
    bond\tAbstract\tBasic\tBiology-inspired concepts with multiple meanings\n\
    \"A logo called \"\"The Rumbury Wanderers\"\"\"\tWorld Knowledge\tImagination\t\n\
    \"\"\"a wall. The word \"\"PEACE\"\tOutdoor Scenes\tComplex\t\n\
    a semi-truck. \tVehicles\tSimple Detail\t\"Description of \"\"Dogs Playing Poker\"\"\"\n";

#[test]
fn a_table_that_pandas_saved_has_the_prompts_and_ids_of_the_published_one() {
    let fixture = Fixture::new(&[]);
    fixture.put("parti.tsv", PARTI.as_bytes());
    let published = one(&fixture, "parti.tsv");
    let windows = PARTI_OF_PANDAS.replace('\n', "\r\n");
    let marked = format!("\u{feff}{PARTI_OF_PANDAS}");
    // All fields in marks, those inside doubled or with a backslash (R).
    let whole = |mark: &str| -> String {
        let field = |field: &str| format!("\"{}\"", field.replace('"', mark));
        let line = |line: &str| line.split('\t').map(field).collect::<Vec<_>>().join("\t");
        PARTI.lines().map(line).collect::<Vec<_>>().join("\n")
    };
    let [all, of_r] = ["\"\"", "\\\""].map(whole);
    for (name, text) in [
        ("pandas", PARTI_OF_PANDAS),
        ("windows", &windows),
        ("marked", &marked),
        ("quote-all", &all),
        ("escaped", &of_r),
    ] {
        fixture.put("parti.tsv", text.as_bytes());
        assert_eq!(one(&fixture, "parti.tsv").prompts, published.prompts, "{name}");
    }
    // Rows of both kinds in one file.
    let both = format!("{PARTI}{}", &PARTI_OF_PANDAS[PARTI_OF_PANDAS.find('\n').unwrap() + 1..]);
    fixture.put("parti.tsv", both.as_bytes());
    let both = one(&fixture, "parti.tsv");
    assert_eq!((both.prompts, both.duplicates), (published.prompts, 4));
}

#[test]
fn fields_of_a_quoted_table_may_hold_lines_and_tabs() {
    let fixture = Fixture::new(&[]);
    fixture.put("a.tsv", b"Prompt\tCategory\n\"a fox\nat night\"\tx\n\"a\tb\"\ty\nc\tz\n");
    let set = one(&fixture, "a.tsv");
    assert_eq!(texts(&set), ["a fox\nat night", "a\tb", "c"]);
    assert_eq!(categories(&set), [Some("x"), Some("y"), Some("z")]);
    // Published raw: a mark that opens a field need not close it.
    fixture.put("a.tsv", b"Prompt\tCategory\n\"hello\tx\na\ty\nit is 5\"\tz\n");
    assert_eq!(texts(&one(&fixture, "a.tsv")), ["\"hello", "a", "it is 5\""]);
    // Backslashes are letters.
    fixture.put("a.tsv", b"Prompt\na\\nb \\t \\\nC:\\x\n");
    assert_eq!(texts(&one(&fixture, "a.tsv")), ["a\\nb \\t \\", "C:\\x"]);
    fixture.put("a.txt", b"\"say \"\"GO\"\"\"\n\"a, b\"\nplain\n");
    assert_eq!(texts(&one(&fixture, "a.txt")), ["say \"GO\"", "a, b", "plain"]);
    fixture.put("a.txt", b"\"say \"GO\"\"\n\"a, b\"\n");
    assert_eq!(texts(&one(&fixture, "a.txt")), ["\"say \"GO\"\"", "\"a, b\""]);
}

#[test]
fn rows_without_a_prompt_are_counted() {
    let fixture = Fixture::new(&[]);
    fixture.put("a.tsv", b"Prompt\tCategory\n\\N\tx\nNaN\tx\n\"\"\tx\na fox\tNaN\n");
    let set = one(&fixture, "a.tsv");
    assert_eq!((texts(&set), categories(&set)), (vec!["a fox"], vec![None]));
    assert!(set.prompts[0].id.starts_with("00004-"), "{:?}", set.prompts);
    fixture.put("a.jsonl", b"{\"prompt\": null}\r\n{\"prompt\": \"a fox\"}\r\n");
    assert_eq!(texts(&one(&fixture, "a.jsonl")), ["a fox"]);
    fixture.put("a.json", b"\xef\xbb\xbf[{\"prompt\": null}, {\"prompt\": \"a fox\"}]");
    assert_eq!(texts(&one(&fixture, "a.json")), ["a fox"]);
    // The lines of an old Mac.
    fixture.put("a.txt", b"a fox\ra cat\r");
    assert_eq!(texts(&one(&fixture, "a.txt")), ["a fox", "a cat"]);
    let list = fixture.put("a.tsv", b"Prompt\nNaN\na fox\n").display().to_string();
    let run =
        Run::of(&mut fixture.generate(&[&model("sd")], &["--prompts", &list, "--seeds", "1"]));
    let run = run.expect_generated(1, 1);
    let says = "skipped 1 row without a prompt (the first is row 1)";
    assert!(run.stderr.contains(says), "{run:#?}");
}

#[test]
fn files_that_hold_no_prompts_are_named_with_a_way_out() {
    let fixture = Fixture::new(&[]);
    let sd = model("sd");
    let long = "a photo of a cat in the rain ".repeat(20);
    let folder = pipeline("sd").display().to_string();
    let cannot = "cannot read ";
    for (prompts, what, says) in [
        ("a photo of a cat", cannot, "hint: --prompts names a file"),
        ("a photo of a cat, 35 mm. Detailed", cannot, "hint: --prompts names a file"),
        (long.as_str(), cannot, "hint: --prompts names a file"),
        ("hf://nateraw/parti-prompts", "no datasets/ after hf://", "hint: "),
        (
            "https://host/a.parquet?key=5",
            "https://host/a.parquet: expected an address",
            "hint: fetch",
        ),
        ("s3://bucket/prompts.txt", cannot, "hint: only Parquet files are read from an address"),
        (folder.as_str(), "expected files of the layout pickapic", "hint: a folder is searched"),
    ] {
        let run = Run::of(&mut fixture.generate(&[&sd], &["--prompts", prompts]));
        let run = run.expect_error(&[what, says]);
        assert!(run.stderr.lines().all(|line| line.len() < 500), "{run:#?}");
    }
    for name in ["a.txt", "a.tsv", "a.csv", "a.json", "a.jsonl"] {
        fixture.put(name, b"\xff\xfeP\0r\0o\0");
        let error = read(&fixture, name).unwrap_err();
        assert!(error.contains(":1: expected UTF-8 text, found UTF-16; hint: save"), "{error}");
    }
}

#[test]
fn hpdv2_prompts_are_read_from_arrays() {
    let fixture = Fixture::new(&[]);
    fixture.put("anime.json", br#"["a \"fox\"", "caf\u00e9 \u2013 night", "a \"fox\"", " "]"#);
    let set = one(&fixture, "anime.json");
    assert_eq!(texts(&set), ["a \"fox\"", "café – night"]);
    assert_eq!((set.duplicates, categories(&set)), (1, vec![None, None]));
    fixture.put(
        "test.json",
        br#"[{"image_path": ["a.jpg"], "prompt": "a fox", "style": "photo"},
             {"prompt": "a cat", "rank": [1, 0]}, {"prompt": "a dog", "style": 3}]"#,
    );
    let set = one(&fixture, "test.json");
    assert_eq!(texts(&set), ["a fox", "a cat", "a dog"]);
    assert_eq!(categories(&set), [Some("photo"), None, Some("3")]);
}

#[test]
fn genevals_lines_are_read() {
    let fixture = Fixture::new(&[]);
    fixture.put(
        "geneval.jsonl",
        b"\xef\xbb\xbf{\"tag\": \"single_object\", \"include\": [], \"prompt\": \"a photo of a bench\"}\n\n\
          {\"tag\": \"counting\", \"include\": [], \"prompt\": \"a photo of two clocks\"}\n",
    );
    let set = one(&fixture, "geneval.jsonl,category=tag");
    assert_eq!(categories(&set), [Some("single_object"), Some("counting")]);
    assert!(set.prompts[1].id.starts_with("00003-"), "lines are counted: {:?}", set.prompts[1]);
    fixture.put("plain.ndjson", b"\"a fox\"\n\"a cat\"\n");
    assert_eq!(texts(&one(&fixture, "plain.ndjson")), ["a fox", "a cat"]);
    // Somebody else's ids are not ours.
    fixture.put("other.jsonl", b"{\"id\": \"../../x\", \"set\": \"y\", \"text\": \"a fox\"}\n");
    let set = one(&fixture, "other.jsonl");
    assert_eq!(set.name, "other");
    assert!(set.prompts[0].id.starts_with("00001-"), "{:?}", set.prompts);
}

#[test]
fn pick_a_pics_captions_are_read_once() {
    let fixture = Fixture::new(&[]);
    fixture.put("validation_unique-00000-of-00001.Parquet", &pick_a_pic());
    let set = one(&fixture, "validation_unique-00000-of-00001.Parquet,name=pickapic");
    assert_eq!(texts(&set), ["pirate guinea pig", "a fox", "the moon"]);
    assert_eq!((&*set.name, set.duplicates), ("pickapic", 3));
    assert!(set.prompts[2].id.starts_with("00005-"));
    let error =
        read(&fixture, "validation_unique-00000-of-00001.Parquet,column=label_0").unwrap_err();
    assert!(error.contains("expected text in the column \"label_0\", found Int64"), "{error}");
    let error =
        read(&fixture, "validation_unique-00000-of-00001.Parquet,column=jpg_0").unwrap_err();
    assert!(error.contains("row 1 of column \"jpg_0\" holds bytes that are not text"), "{error}");
}

#[test]
fn a_folder_of_parquet_files_is_one_set_of_one_split() {
    let fixture = Fixture::new(&[]);
    let texts_of =
        |words: &[&str]| parquet(vec![("caption", Arc::new(StringArray::from(words.to_vec())))]);
    fixture.put("pick/train-00000-of-00002.parquet", &texts_of(&["a fox", "a cat"]));
    fixture.put("pick/train-00001-of-00002.parquet", &texts_of(&["a cat", "a dog"]));
    fixture.put("pick/test_unique-00000-of-00001.parquet", &texts_of(&["the moon"]));
    let error = read(&fixture, "pick").unwrap_err();
    assert!(error.contains("test_unique (1 file), train (2 files)"), "{error}");
    assert!(error.contains("--split train"), "{error}");
    let set = one(&fixture, "pick,split=train");
    assert_eq!((texts(&set), &*set.name), (vec!["a fox", "a cat", "a dog"], "pick"));
    assert!(set.prompts[2].id.starts_with("00004-"), "rows are numbered through the files");
    assert_eq!(texts(&one(&fixture, "pick,split=test_unique,name=x")), ["the moon"]);
    let set = one(&fixture, "pick/train-*.parquet");
    assert_eq!((set.prompts.len(), &*set.name), (3, "pick"));
    let error = read(&fixture, "pick,split=validation").unwrap_err();
    assert!(error.contains("\"validation\", found test_unique (1 file), train"), "{error}");
    let error = read(&fixture, "pick/train-00000-of-00002.parquet,split=test").unwrap_err();
    assert!(error.contains("found train (1 file)"), "{error}");
}

#[test]
fn prompts_of_object_storage_are_those_of_a_folder() {
    let fixture = Fixture::new(&[]);
    fixture.put("pick/train-00000-of-00001.parquet", &pick_a_pic());
    fixture.put("pick/test-00000-of-00001.parquet", &pick_a_pic());
    let store = ObjectStore::start();
    store.put_folder("bucket/pick", &fixture.path("pick"));
    let sd = model("sd");
    let manifest = |prompts: &str| {
        let mut command = fixture.generate(&[&sd], &["--prompts", prompts, "--seeds", "1"]);
        Run::of(command.arg("--dry-run").envs(store.variables())).expect_code(0).stdout
    };
    let local = manifest(&format!("{},split=train", fixture.path("pick").display()));
    assert!(local.contains('3'), "{local}");
    for address in [
        "s3://bucket/pick,split=train",
        "s3://bucket/pick/train-*.parquet",
        "s3://bucket/pick/train-00000-of-00001.parquet,name=pick",
    ] {
        assert_eq!(manifest(address), local, "{address}");
    }
    let mut several = fixture.generate(&[&sd], &["--prompts", "s3://bucket/pick"]);
    Run::of(several.envs(store.variables())).expect_error(&["test (1 file), train (1 file)"]);
}

#[test]
fn csv_is_read_with_its_quotes() {
    let fixture = Fixture::new(&[]);
    fixture.put("x.csv", b"style,PROMPT\nphoto,\"a fox, \"\"red\"\"\nat night\"\n,a 5\" disk\n");
    let set = one(&fixture, "x.csv");
    assert_eq!(texts(&set), ["a fox, \"red\"\nat night", "a 5\" disk"]);
    assert_eq!(categories(&set), [Some("photo"), None]);
}

#[test]
fn what_is_no_table_of_prompts_is_refused_in_a_sentence() {
    let fixture = Fixture::new(&[]);
    let pairs = pick_a_pic();
    let no_captions = parquet(vec![("number", Arc::new(Int64Array::from(vec![1])))]);
    let nulls = parquet(vec![("text", Arc::new(StringArray::from(vec![None::<&str>, Some(" ")])))]);
    let mut damaged = pairs.clone();
    let middle = damaged.len() / 2;
    damaged[4..middle].fill(0xff);
    for (name, bytes, says) in [
        ("a.tsv", &b""[..], "a.tsv: expected a table of prompts, found nothing"),
        ("a.tsv", b"Prompt\n", "expected prompts below the first line, found none"),
        (
            "a.tsv",
            b"bond\tAbstract\n",
            "found the columns \"bond\", \"Abstract\"; hint: the first line",
        ),
        (
            "a.tsv",
            b"Prompt\tCategory\nx\ty\nz\n",
            "a.tsv:3: expected 2 columns as in the first line, found 1",
        ),
        ("a.tsv", b"Prompt\nna\xefve\n", "a.tsv:2: expected UTF-8 text"),
        ("a.tsv", b"Prom\xefpt\nx\n", "a.tsv:1: expected UTF-8 text"),
        ("a.tsv", b"Prompt\na\0b\n", "a.tsv:2: expected text, found a zero byte"),
        ("a.csv", b"a,b\n1,2\n", "expected a column called prompt, caption or text"),
        ("a.json", b"", "expected a JSON array of prompts, found EOF"),
        ("a.json", b"[\"a fox\", \"a c", "hint: is the file truncated?"),
        ("a.json", b"{\"prompt\": \"a fox\"}", "expected a JSON array of prompts, found an object"),
        ("a.json", b"[]", "expected prompts in an array, found none"),
        ("a.json", b"[\"a fox\", 3]", "element 2: expected text or an object, found a number"),
        (
            "a.json",
            b"[{\"prompt\": [\"a fox\"]}]",
            "element 1: expected text in \"prompt\", found an array",
        ),
        (
            "a.json",
            b"[{\"prompt\": \"a\"}, {}]",
            "element 2: expected text in \"prompt\", found no such field",
        ),
        ("a.json", b"[{\"a\": 1, \"b\": 2}]", "found the columns \"a\", \"b\"; hint: choose one"),
        ("a.json", b"[\"na\xefve\"]", "expected a JSON array of prompts, found"),
        ("a.json", b"[\"a\\u0000b\"]", "element 1: expected text, found a zero byte"),
        (
            "a.jsonl",
            b"{\"prompt\": \"a\"}\n{\"prompt\": \n",
            "a.jsonl:2: expected a JSON object in each line",
        ),
        ("a.jsonl", b"\xff\xfe\n", "a.jsonl:1: expected UTF-8 text"),
        ("a.parquet", b"", "a.parquet: expected a Parquet file, found an empty file"),
        ("a.parquet", &pairs[..pairs.len() - 9], "hint: the download or copy is incomplete"),
        ("a.parquet", &damaged, "a.parquet: damaged or unsupported Parquet"),
        ("a.parquet", &no_captions, "found the columns \"number\"; hint: choose one"),
        ("a.parquet", &nulls, "expected rows with prompts, found none"),
    ] {
        fixture.put(name, bytes);
        let error = read(&fixture, name).unwrap_err();
        assert!(error.contains(says), "{says:?} is not in {error}");
    }
    let deep = "[".repeat(100_000);
    fixture.put("deep.json", deep.as_bytes());
    assert!(read(&fixture, "deep.json").unwrap_err().contains("recursion limit"));
    fixture.put("a.txt", b"a fox\n");
    let error = read(&fixture, "a.txt,column=Prompt").unwrap_err();
    assert!(
        error.contains("expected a table with the column \"Prompt\", found a text file"),
        "{error}"
    );
    fixture.put("texts.json", b"[\"a fox\"]");
    let error = read(&fixture, "texts.json,column=Prompt").unwrap_err();
    assert!(error.contains("element 1: expected an object with \"Prompt\", found text"), "{error}");
}

#[test]
fn images_are_generated_for_tables() {
    let fixture = Fixture::new(&[]);
    let parti = fixture.put("PartiPrompts.tsv", PARTI.as_bytes());
    let pairs = fixture.put("pairs.parquet", &pick_a_pic());
    let sd = model("sd");
    let sources = [
        format!("{},name=parti,limit=1", parti.display()),
        format!("{},name=pickapic", pairs.display()),
    ];
    let more = ["--prompts", &sources[0], &sources[1], "--preset", "paper-sdxl", "--seeds", "1"];
    Run::of(&mut fixture.generate(&[&sd], &more)).expect_generated(4, 4);
    let manifest: serde_json::Value =
        serde_json::from_slice(&fixture.files("out")["manifest.json"]).unwrap();
    let sets = manifest["prompts"].as_object().unwrap();
    assert_eq!(sets["parti"].as_object().unwrap().values().collect::<Vec<_>>(), ["bond"]);
    assert_eq!(sets["pickapic"].as_object().unwrap().len(), 3);
    // The settings that were saved are a --config of their own.
    let config = fixture.path("out/config.toml");
    let mut again = common::evaluate(["generate", "--config"]);
    Run::of(again.arg(config)).expect_generated(0, 4);

    let refused = |more: &[&str], says: &[&str]| {
        Run::of(&mut fixture.generate(&[&sd], more)).expect_error(says);
    };
    let unknown = format!("{},name=mine", parti.display());
    refused(
        &["--prompts", &unknown, "--preset", "paper-sd15"],
        &["paper-sd15 does not know the set \"mine\"", "hint: after the file, add ,name=pickapic"],
    );
    let file = fixture.put("both.toml", b"limit = 3\n");
    let file = file.display().to_string();
    let both = ["--prompts", &unknown, "--preset", "paper-sd15", "--config", &file];
    let run = Run::of(&mut fixture.generate(&[&sd], &both));
    run.expect_usage_error(&["--limit and --preset both say", "hint"]);
    let run = Run::of(&mut fixture.generate(&[&sd], &["--prompts", "x.tsv,colum=Prompt"]));
    let run = run.expect_code(2);
    assert!(run.stderr.contains("unknown option \"colum\""), "{run:#?}");
}
