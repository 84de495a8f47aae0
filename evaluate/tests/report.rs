//! The report page: complete, escaped, and without a request to anywhere.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod scored_fixture;

use evaluate::present::report::{self, DroppedPrompt, ReportInputs};
use evaluate::scores_index::{ScoresIndex, Selection};
use evaluate::tables::{Tables, TablesConfig};
use scored_fixture::{HOSTILE, ScoredFixture};
use serde_json::Value;

/// The page of a fixture, with these dropped prompts.
fn page(fixture: &ScoredFixture, dropped: &[DroppedPrompt]) -> String {
    let tables = Tables::compute(&fixture.rows, &TablesConfig::default()).unwrap();
    let manifest = serde_json::json!({"prompts": HOSTILE, "seeds": [0, 1, 2]});
    let inputs = ReportInputs {
        folder: fixture.folder.path(),
        index: &ScoresIndex::new(&fixture.rows, Selection::default()).unwrap(),
        win_rates: &tables.win_rates,
        means: &tables.means,
        agreement: &tables.agreement,
        notes: &tables.notes,
        labels: None,
        manifest: &manifest,
        dropped,
    };
    let path = report::write(&inputs, fixture.folder.path()).unwrap();
    assert_eq!(path, fixture.folder.path().join("report.html"));
    std::fs::read_to_string(path).unwrap()
}

/// What stands between the data element's tags, and the page without it.
fn data(page: &str) -> (Value, String) {
    let (before, rest) = page.split_once("<script type=\"application/json\" id=\"data\">").unwrap();
    let (json, after) = rest.split_once("</script>").unwrap();
    (serde_json::from_str(json).unwrap(), format!("{before}{after}"))
}

#[test]
fn hostile_prompts_stay_text() {
    let fixture = ScoredFixture::new(&HOSTILE, &["parti", "hpd"]);
    let dropped = DroppedPrompt {
        set: "<i>set</i>".to_owned(),
        id: "\"7\"".to_owned(),
        prompt: "</td><script>alert(2)</script>".to_owned(),
        reason: "unsafe".to_owned(),
    };
    let page = page(&fixture, &[dropped]);
    // The script element of the page and that of the data: no other begins, none ends early.
    assert_eq!(page.matches("<script").count(), 2);
    assert_eq!(page.matches("</script").count(), 2);
    assert!(!page.contains("<i>set") && !page.contains("</td><script"));
    assert!(page.contains("&lt;script&gt;alert(2)&lt;&#x2f;script&gt;"), "shown as it is");
    for words in ["http:", "https:", "src=\"", "@import", "url("] {
        assert!(!page.contains(words), "{words}");
    }
    let (data, _) = data(&page);
    let texts: Vec<&str> = data["prompts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|prompt| prompt["text"].as_str().unwrap())
        .collect();
    for prompt in HOSTILE {
        assert_eq!(texts.iter().filter(|text| **text == prompt).count(), 2, "once in each set");
    }
    assert!(texts.iter().any(|text| text.len() > 2000));
}

#[test]
fn the_page_holds_tables_figures_and_the_gallery() {
    let fixture = ScoredFixture::new(&["a red fox", "a cat", "two birds"], &["parti"]);
    let page = page(&fixture, &[]);
    for words in ["<span class=\"over\">over</span>", "Wilson", "Win rates on parti", "Manifest"] {
        assert!(page.contains(words), "{words}");
    }
    let (data, rest) = data(&page);
    assert_eq!(data["models"], serde_json::json!(["base", "tuned <1>"]));
    assert_eq!(data["letters"], serde_json::json!(["P", "H", "C", "A"]));
    assert_eq!(data["categories"], serde_json::json!(["Animals", "Food"]));
    assert_eq!(data["choices"], serde_json::json!([null, 0, 1, 2, 3]));
    assert!(rest.contains("tuned &lt;1&gt;") && !rest.contains("tuned <1>"));
    // Every image is there, with the address of its file relative to the page.
    let shown = data["prompts"][1]["models"][0]["images"].as_array().unwrap();
    let files: Vec<&str> = shown.iter().map(|image| image["file"].as_str().unwrap()).collect();
    assert_eq!(files, [0, 1, 2].map(|seed| format!("images/0/parti-1/{seed}.png")));
    let thumbnails = data["thumbnails"].as_array().unwrap();
    let images = data["prompts"].as_array().unwrap().iter().flat_map(|prompt| {
        let models = prompt["models"].as_array().unwrap().clone();
        models.into_iter().flat_map(|model| model["images"].as_array().unwrap().clone())
    });
    let places: Vec<u64> = images.map(|image| image["thumbnail"].as_u64().unwrap()).collect();
    assert_eq!(places, (0..thumbnails.len() as u64).collect::<Vec<_>>());
    assert!(thumbnails.iter().all(|jpeg| jpeg.as_str().unwrap().starts_with("/9j/")));
    // Without its script the page is a plain list with links to the files.
    let (_, list) = page.split_once("<ol>").unwrap();
    assert_eq!(list.matches("<a href=\"images/").count(), 3 * 2, "an image of each model");
    assert!(page.contains("<b>P</b> pickscore"), "the letters have a legend");
    for figure in ["winrates-parti", "cross-selection", "scores"] {
        let png =
            std::fs::read(fixture.folder.path().join(format!("figures/{figure}.png"))).unwrap();
        let reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        assert_eq!(reader.info().width, 1800, "{figure}");
    }
}

#[test]
fn an_image_that_is_gone_is_missing_in_the_gallery() {
    let fixture = ScoredFixture::new(&["a red fox"], &["parti"]);
    let images = fixture.folder.path().join("images");
    std::fs::remove_dir_all(images.join("1")).unwrap();
    let (data, _) = data(&page(&fixture, &[]));
    let images = |model: usize| {
        let shown = &data["prompts"][0]["models"][model]["images"];
        shown.as_array().unwrap().iter().map(|shown| !shown["thumbnail"].is_null()).collect()
    };
    let (base, tuned): (Vec<bool>, Vec<bool>) = (images(0), images(1));
    assert!(base.iter().all(|there| *there) && tuned.iter().all(|there| !there));
}

#[test]
fn equal_inputs_give_equal_pages() {
    let fixture = ScoredFixture::new(&["a red fox", "a cat"], &["parti"]);
    assert_eq!(page(&fixture, &[]), page(&fixture, &[]));
}

#[test]
fn one_model_is_no_comparison_and_still_a_page() {
    let mut fixture = ScoredFixture::new(&["a red fox"], &["parti"]);
    fixture.rows.retain(|row| row.model == "base");
    let page = page(&fixture, &[]);
    assert!(page.contains("Evaluation of 1 model<"), "{}", &page[..200]);
    assert!(page.contains("no pair of models"));
}
