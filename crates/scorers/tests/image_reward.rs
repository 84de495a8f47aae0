//! `kind = "image-reward"` from files to scores, on the model that `scripts/goldens/image_reward.py`
//! makes with timm, transformers and Pillow.
#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use media::decode::{Image, Mode};
use scorers::{DescribedScorers, ScorerError, ScorerSet, ScorersConfig};
use serde_json::{Value, json};
use support::{CPU, Models, hf_entry, repository};

const FIXTURE: &str = "crates/nn/tests/fixtures/image_reward";

fn expected() -> Value {
    let text = fs_err::read(repository(FIXTURE).join("expected.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// The images of the golden script.
fn images(expected: &Value) -> Vec<Image> {
    let image = |sizes: &Value| {
        let [width, height, seed] = [0, 1, 2].map(|at| sizes[at].as_u64().unwrap());
        let level =
            |place: u64| (((seed * 1_000_003 + place) * 2_654_435_761 % (1 << 32)) >> 24) as u8;
        let pixels = (0..width * height * 3).map(level).collect();
        Image::new(Mode::Rgb, width as u32, height as u32, pixels).unwrap()
    };
    expected["images"].as_array().unwrap().iter().map(image).collect()
}

fn entry(more: &str) -> String {
    format!("[[scorer]]\nname = \"reward\"\nkind = \"image-reward\"\nmodel = \"reward\"\n{more}\n")
}

/// A copy of the fixture beside copies of models of `data/mini`.
fn models(others: &[(&str, &str)]) -> Models {
    let models = Models::new(others);
    fs_err::create_dir(models.path("reward")).unwrap();
    for file in ["ImageReward.pt", "med_config.json", "vocab.txt"] {
        fs_err::copy(repository(FIXTURE).join(file), models.path("reward").join(file)).unwrap();
    }
    models
}

fn message(result: Result<DescribedScorers, ScorerError>) -> String {
    result.unwrap_err().to_string()
}

/// Scores of all pairs at once, more than one forward holds, against the Python libraries.
fn compare(set: &ScorerSet, scorer: usize) {
    let expected = expected();
    let captions: Vec<&str> = expected["captions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap())
        .collect();
    let preprocessor = set.image_preprocessor();
    let pixels: Vec<_> =
        images(&expected).iter().map(|image| preprocessor.preprocess(image).unwrap()).collect();
    let features = set.encode_images(&pixels.iter().collect::<Vec<_>>()).unwrap();
    let texts = set.encode_texts(&set.tokenize(&captions)).unwrap();
    // What a caller keeps of captions and gives back.
    let rows: Vec<Vec<f32>> =
        (0..set.text_tower_count()).map(|tower| texts.to_rows(tower).unwrap()).collect();
    let texts = set.text_features(&rows, captions.len()).unwrap();
    let pairs: Vec<(usize, usize)> = (0..pixels.len())
        .flat_map(|image| (0..captions.len()).rev().map(move |caption| (image, caption)))
        .cycle()
        .take(50)
        .collect();
    let scores = set.score(&features, &texts, &pairs).unwrap();
    for ((image, caption), score) in pairs.into_iter().zip(&scores[scorer]) {
        let wanted = expected["scores"][image][caption].as_f64().unwrap();
        let score = *score.as_ref().unwrap();
        let apart = (f64::from(score) - wanted).abs();
        assert!(apart <= 1e-5, "image {image}, caption {caption}: {score} {wanted}");
    }
}

#[test]
fn scores_equal_those_of_the_python_libraries() {
    let models = models(&[]);
    let described = models.describe(&entry("")).unwrap();
    assert_eq!(described.text_widths(), [36]);
    compare(&described.load().unwrap(), 0);
}

/// Beside scorers with a cosine, each has the scores that it has alone.
#[test]
fn it_works_beside_other_kinds() {
    let models = models(&[("clip", "clip")]);
    let both = models.describe(&(hf_entry("clip", "") + &entry(""))).unwrap().load().unwrap();
    compare(&both, 1);
    let alone = models.describe(&hf_entry("clip", "")).unwrap().load().unwrap();
    let image = &images(&expected())[1];
    let of = |set: &ScorerSet| {
        set.score_one(image, "a photo of a cat").unwrap().swap_remove(0).1.unwrap()
    };
    assert_eq!(of(&both), of(&alone));
}

#[test]
fn the_manifest_says_what_scores_depend_on() {
    let models = models(&[]);
    let record = |models: &Models| {
        let described = models.describe(&entry("")).unwrap();
        serde_json::to_value(&described.manifest().scorers[0]).unwrap()
    };
    let plain = record(&models);
    assert_eq!(plain["kind"], "image-reward");
    assert_eq!(plain["image"]["layout"], "blip");
    assert_eq!(plain["image"]["weights"][0]["file"], "ImageReward.pt");
    assert_eq!(plain["image"]["network"]["heads"], 1);
    assert_eq!(plain["image"]["network"]["image_size"], 32);
    assert_eq!(plain["text"]["network"]["width"], 24);
    assert_eq!(plain["text"]["context_length"], 35);
    assert_eq!(plain.get("head"), None);
    models.change("reward/med_config.json", &json!({"layer_norm_eps": 1e-6}));
    let changed = record(&models);
    assert_ne!(changed["text"]["network"], plain["text"]["network"]);
    let vocabulary = fs_err::read_to_string(models.path("reward/vocab.txt")).unwrap();
    let renamed = vocabulary.replace("\nfox\n", "\nwolf\n");
    assert_ne!(renamed, vocabulary);
    fs_err::write(models.path("reward/vocab.txt"), renamed).unwrap();
    assert_ne!(record(&models)["text"]["tokenizer"], changed["text"]["tokenizer"]);
}

/// The published folder has no vocabulary: another one is named.
#[test]
fn the_vocabulary_may_be_elsewhere() {
    let models = models(&[]);
    fs_err::create_dir(models.path("bert")).unwrap();
    fs_err::rename(models.path("reward/vocab.txt"), models.path("bert/vocab.txt")).unwrap();
    compare(&models.describe(&entry("vocabulary = \"bert\"")).unwrap().load().unwrap(), 0);

    let error = message(models.describe(&entry("vocabulary = \"reward\"")));
    assert!(error.contains("neither tokenizer.json nor vocab.txt"), "{error}");
    let error = message(models.describe(&entry("vocabulary = \"nowhere\"")));
    assert!(error.contains("nowhere"), "{error}");
    fs_err::write(models.path("bert/vocab.txt"), "[PAD]\n[UNK]\n").unwrap();
    let error = message(models.describe(&entry("vocabulary = \"bert\"")));
    assert!(error.contains("[SEP]") && error.contains("vocab.txt"), "{error}");
}

#[test]
fn what_does_not_fit_is_named() {
    let case = |change: &dyn Fn(&Models)| {
        let models = models(&[]);
        change(&models);
        message(models.describe(&entry("")))
    };
    let remove = |file: &'static str| {
        move |models: &Models| fs_err::remove_file(models.path(&format!("reward/{file}"))).unwrap()
    };
    for (error, expected) in [
        (case(&remove("med_config.json")), "med_config.json"),
        (case(&remove("ImageReward.pt")), "holds none of"),
        (
            case(&|models| models.change("reward/med_config.json", &json!({"hidden_act": "relu"}))),
            "hidden_act",
        ),
        (
            case(&|models| {
                models.change("reward/med_config.json", &json!({"max_position_embeddings": 20}));
            }),
            "at least the 35 tokens",
        ),
        (
            case(&|models| models.change("reward/med_config.json", &json!({"vocab_size": 50}))),
            "vocab.txt beside its weights",
        ),
        (
            case(&|models| {
                let clip = repository("data/mini/hps/open_clip_pytorch_model.pt");
                fs_err::copy(clip, models.path("reward/ImageReward.pt")).unwrap();
            }),
            "expected ImageReward's tensors",
        ),
    ] {
        assert!(error.contains(expected), "{error:?} should contain {expected:?}");
    }
    // Shapes that no configuration names are checked when the weights are read.
    let models = models(&[]);
    models.change("reward/med_config.json", &json!({"intermediate_size": 41}));
    let error = models.describe(&entry("")).unwrap().load().unwrap_err().to_string();
    assert!(
        error.contains("intermediate.dense.weight: expected [41, 24], found [40, 24]"),
        "{error}"
    );
    let file = models.path("other.toml");
    fs_err::write(&file, entry("layout = \"transformers\"")).unwrap();
    let error = ScorersConfig::read(&file)
        .and_then(|config| DescribedScorers::of(&config, CPU))
        .unwrap_err()
        .to_string();
    assert!(error.contains("`layout` has no meaning for kind = \"image-reward\""), "{error}");
}
