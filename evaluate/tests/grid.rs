//! Contact sheets: their size, and images at their places, pixel by pixel.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;
mod scored_fixture;

use std::collections::BTreeMap;

use common::{Run, evaluate};
use evaluate::present::bitmap::Bitmap;
use evaluate::present::grid::{self, GridConfig, Layout, Order};
use schemas::scores::ScoresWriter;
use scored_fixture::{ScoredFixture, image_of};

fn config(layout: Layout) -> GridConfig {
    GridConfig {
        layout,
        prompts: Vec::new(),
        models: Vec::new(),
        choose: "first".to_owned(),
        count: None,
        sort: Order::Given,
        side: None,
    }
}

fn render(fixture: &ScoredFixture, config: &GridConfig) -> Bitmap {
    grid::render(&fixture.rows, fixture.folder.path(), config).unwrap()
}

/// Where `small`, enlarged four times, stands in the sheet.
fn places(sheet: &Bitmap, small: &Bitmap) -> Vec<(u32, u32)> {
    let at = |x: u32, y: u32| {
        let start = ((y * sheet.width + x) * 3) as usize;
        &sheet.pixels[start..start + 3]
    };
    let equal = |left: u32, top: u32| {
        (0..small.width * 4).all(|x| {
            (0..small.height * 4).all(|y| {
                let from = ((y / 4 * small.width + x / 4) * 3) as usize;
                at(left + x, top + y) == &small.pixels[from..from + 3]
            })
        })
    };
    let (right, bottom) = (sheet.width - small.width * 4, sheet.height - small.height * 4);
    let corners = (0..=bottom).flat_map(|top| (0..=right).map(move |left| (left, top)));
    corners.filter(|(left, top)| equal(*left, *top)).collect()
}

#[test]
fn models_stand_beside_each_other() {
    let fixture = ScoredFixture::new(&["a red fox", "a cat", "two birds"], &["parti"]);
    let sheet = render(&fixture, &config(Layout::Models));
    // Margins of 14, heads of 150, two images of 128, gaps of 10.
    assert_eq!(sheet.width, 14 + 150 + 10 + 128 + 10 + 128 + 14);
    let mut tops = Vec::new();
    for prompt in 0..3 {
        let [base, tuned] = [0, 1].map(|model| places(&sheet, &image_of(model, prompt, 0)));
        let ([(left, top)], [(right, same)]) = (&base[..], &tuned[..]) else {
            panic!("prompt {prompt}: {base:?} {tuned:?}");
        };
        assert_eq!((*left, *right, top), (174, 312, same));
        tops.push(*top);
    }
    assert!(tops.windows(2).all(|rows| rows[0] + 128 < rows[1]), "{tops:?}");
    // Something is written beneath each image, and in the head of each row.
    let dark = |x: std::ops::Range<u32>, y: std::ops::Range<u32>| {
        y.flat_map(|y| x.clone().map(move |x| (x, y)))
            .filter(|(x, y)| sheet.pixels[((y * sheet.width + x) * 3) as usize] < 160)
            .count()
    };
    for top in tops {
        assert!(dark(174..302, top + 129..top + 150) > 50);
        assert!(dark(14..164, top..top + 20) > 50);
    }
}

#[test]
fn the_chosen_image_is_shown() {
    let mut fixture = ScoredFixture::new(&["a red fox"], &["parti"]);
    for row in &mut fixture.rows {
        let best = if row.metric == "hps" { 2 } else { 1 };
        row.score = Some(if row.seed == best { 0.9 } else { 0.1 });
    }
    for (choose, seed) in [("first", 0), ("hps", 2), ("all", 1)] {
        let config = GridConfig { choose: choose.to_owned(), ..config(Layout::Models) };
        let sheet = render(&fixture, &config);
        for other in 0..3 {
            let found = places(&sheet, &image_of(1, 0, other)).len();
            assert_eq!(found, usize::from(other == seed), "{choose}, seed {other}");
        }
    }
}

#[test]
fn seeds_stand_beside_each_other() {
    let fixture = ScoredFixture::new(&["a red fox", "a cat"], &["parti"]);
    let mut config = config(Layout::Seeds);
    config.prompts = vec!["CAT".to_owned()];
    config.models = vec!["tuned <1>".to_owned()];
    let sheet = render(&fixture, &config);
    assert_eq!(sheet.width, 14 + 150 + 3 * (10 + 128) + 14);
    let found: Vec<_> = (0..3).flat_map(|seed| places(&sheet, &image_of(1, 1, seed))).collect();
    let [(one, top), (two, second), (three, third)] = found[..] else { panic!("{found:?}") };
    assert_eq!((one, two, three), (174, 312, 450));
    assert!(top == second && second == third);
}

#[test]
fn prompts_are_sorted_by_margin_and_counted() {
    let mut fixture = ScoredFixture::new(&["a", "b", "c"], &["parti"]);
    for row in &mut fixture.rows {
        let number: f32 = row.prompt_id.parse().unwrap();
        let tuned = row.model != "base";
        row.score = Some(if tuned { (number - 1.0).abs() + number / 10.0 } else { 0.0 });
    }
    let config = GridConfig {
        count: Some(2),
        sort: Order::Margin("clip".to_owned()),
        ..config(Layout::Models)
    };
    let sheet = render(&fixture, &config);
    let top = |prompt: usize| places(&sheet, &image_of(0, prompt, 0)).first().map(|place| place.1);
    assert!(top(2).unwrap() < top(0).unwrap(), "the largest margin comes first");
    assert_eq!(top(1), None);
}

#[test]
fn a_missing_image_is_an_empty_frame() {
    let fixture = ScoredFixture::new(&["a red fox"], &["parti"]);
    std::fs::remove_dir_all(fixture.folder.path().join("images/1")).unwrap();
    let sheet = render(&fixture, &config(Layout::Models));
    assert_eq!(places(&sheet, &image_of(0, 0, 0)).len(), 1);
    assert_eq!(places(&sheet, &image_of(1, 0, 0)).len(), 0);
    let (x, y) = (312 + 20, places(&sheet, &image_of(0, 0, 0))[0].1 + 20);
    let start = ((y * sheet.width + x) * 3) as usize;
    assert_eq!(sheet.pixels[start..start + 3], [0xf4, 0xf5, 0xf7]);
}

#[test]
fn hostile_prompts_and_all_sizes_are_rendered() {
    let fixture = ScoredFixture::new(&scored_fixture::HOSTILE, &["parti"]);
    for side in [16, 200] {
        let sheet = render(&fixture, &GridConfig { side: Some(side), ..config(Layout::Models) });
        assert_eq!(sheet.width, 14 + 150 + 2 * (10 + side) + 14);
    }
}

#[test]
fn the_command_writes_an_image_or_says_what_is_wrong() {
    let fixture = ScoredFixture::new(&["a red fox"], &["parti"]);
    let scores = fixture.folder.path().join("scores.parquet");
    let mut writer = ScoresWriter::create(&scores, &BTreeMap::new()).unwrap();
    fixture.rows.iter().for_each(|row| writer.write(row.clone()).unwrap());
    writer.finish().unwrap();

    let run = |more: &[&str]| Run::of(evaluate(["grid", "--scores"]).arg(&scores).args(more));
    let done = run(&[]).expect_code(0);
    assert!(done.stdout.starts_with("sheet: ") && done.stdout.ends_with("/grid.png\n"), "{done:?}");
    let sheet = Bitmap::read(&fixture.folder.path().join("grid.png")).unwrap();
    assert_eq!(
        sheet,
        render(&fixture, &GridConfig { choose: "all".to_owned(), ..config(Layout::Models) })
    );

    run(&["--models", "base,other"])
        .expect_error(&["no scores of the model \"other\"", "hint: there are scores of base"]);
    run(&["--choose", "beauty"])
        .expect_error(&["no scores of the metric \"beauty\"", "pickscore, hps"]);
    run(&["--prompts", "zebra"]).expect_error(&["no prompt \"zebra\"", "hint"]);
    run(&["--sort", "margin:beauty"]).expect_error(&["no scores of the metric \"beauty\""]);
    run(&["--count", "0"]).expect_usage_error(&["--count must be at least 1", "hint"]);
    run(&["--size", "5"]).expect_usage_error(&["--size must be 16 to 2048 pixels"]);
    let usage = run(&["--sort", "best"]).expect_code(2);
    assert!(usage.stderr.contains("margin:METRIC"), "{usage:?}");
}

/// A fixture with its scores in a file.
fn written(fixture: &ScoredFixture) -> std::path::PathBuf {
    let scores = fixture.folder.path().join("scores.parquet");
    let mut writer = ScoresWriter::create(&scores, &BTreeMap::new()).unwrap();
    fixture.rows.iter().for_each(|row| writer.write(row.clone()).unwrap());
    writer.finish().unwrap();
    scores
}

#[test]
fn nothing_that_is_not_ours_is_overwritten() {
    let fixture = ScoredFixture::new(&["a red fox", "a cat"], &["parti"]);
    let scores = written(&fixture);
    let out = fixture.folder.path().join("out");
    let place = |name: &str| out.join(name).display().to_string();
    let run = |command: &str, to: &str| {
        let mut program = evaluate([command, "--scores"]);
        Run::of(program.arg(&scores).args(["--out", to]))
    };
    let image = fixture.folder.path().join(&fixture.rows[0].image);
    for (to, says) in [
        (scores.display().to_string(), "expected the name of a .png file"),
        (place("x.jpg"), "expected the name of a .png file; hint: --out "),
        (place("x"), "expected the name of a .png file"),
    ] {
        run("grid", &to).expect_usage_error(&[says]);
    }
    // Scores under the name of an image, by another name of the same file.
    let link = fixture.folder.path().join("link.png");
    std::os::unix::fs::symlink(&scores, &link).unwrap();
    for to in [&image, &link] {
        let before = std::fs::read(to).unwrap();
        run("grid", &to.display().to_string()).expect_error(&["is one of the inputs", "hint"]);
        assert_eq!(std::fs::read(to).unwrap(), before);
    }
    let foreign = |command: &str, to: &str, name: &str| {
        let file = out.join(name);
        runkit::files::create_folder(file.parent().unwrap()).unwrap();
        runkit::files::write_atomic(&file, |file| file.write_all(b"mine")).unwrap();
        let files = std::fs::read_dir(&out).unwrap().count();
        let says = ["this program did not write", "hint: choose another --out"];
        let run = run(command, to).expect_error(&says);
        assert!(run.stderr.contains(name), "{run:#?}");
        assert_eq!(std::fs::read(&file).unwrap(), b"mine");
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), files, "nothing is written beside it");
        std::fs::remove_file(&file).unwrap();
    };
    let folder = out.display().to_string();
    // On nothing of ours first, then on what an earlier command left.
    for _ in 0..2 {
        foreign("grid", &place("sheet.png"), "sheet.png");
        for name in ["tables.md", "tables.tex", "tables.csv", "winrates.parquet", "summary.json"] {
            foreign("tables", &folder, name);
        }
        for name in ["report.html", "figures/scores.png"] {
            foreign("report", &folder, name);
        }
        run("grid", &place("sheet.png")).expect_code(0);
        run("tables", &folder).expect_code(0);
        run("report", &folder).expect_code(0);
    }
    let after = ["grid", "tables", "report"].map(|command| {
        let to = if command == "grid" { place("sheet.png") } else { folder.clone() };
        run(command, &to).expect_code(0)
    });
    assert!(after.iter().all(|run| !run.stdout.is_empty()), "what is ours is made again");
    for command in ["tables", "report"] {
        run(command, "/proc/out").expect_error(&["/proc/out"]);
    }
    let mut labels = evaluate(["report", "--labels", "absent.parquet", "--scores"]);
    Run::of(labels.arg(&scores)).expect_error(&["absent.parquet"]);
}
