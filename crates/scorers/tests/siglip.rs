//! SigLIP from its folder to a score, against transformers (`scripts/goldens/siglip.py`), and what its
//! two kinds share.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Read as _;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use media::decode::{Image, Limits, Mode, decode};
use scorers::{Compute, DescribedScorers, ScorerError, ScorersConfig};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

#[derive(Deserialize)]
struct Goldens {
    images: Vec<String>,
    captions: Vec<String>,
    processors: Vec<Case>,
    siglip_config: Value,
    siglip_scores: Vec<Vec<f64>>,
    siglip_cased_config: Value,
    siglip_cased_scores: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    config: Value,
    tensors: Vec<Option<String>>,
}

fn goldens() -> Goldens {
    let file = repository("crates/scorers/tests/fixtures/siglip.json");
    serde_json::from_slice(&fs_err::read(file).unwrap()).unwrap()
}

/// A file or folder of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

const NETWORK: &str = "crates/nn/tests/fixtures/siglip";

/// A folder with the model `m`, in the published layout.
struct Models(tempfile::TempDir);

impl Models {
    fn new(tokenizer: &Value, processor: &Value) -> Self {
        let models = Self(tempfile::tempdir().unwrap());
        let to = models.path("m");
        fs_err::create_dir(&to).unwrap();
        for name in ["config.json", "model.safetensors", "head.pth"] {
            fs_err::copy(repository(NETWORK).join(name), to.join(name)).unwrap();
        }
        let packed = repository("crates/media/tests/fixtures/siglip/spiece.model.gz");
        let mut model = Vec::new();
        GzDecoder::new(fs_err::File::open(packed).unwrap()).read_to_end(&mut model).unwrap();
        fs_err::write(to.join("spiece.model"), model).unwrap();
        models.write("m/tokenizer_config.json", tokenizer);
        models.write("m/preprocessor_config.json", processor);
        models
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn write(&self, file: &str, content: &Value) {
        fs_err::write(self.path(file), content.to_string()).unwrap();
    }

    fn describe(&self, toml: &str) -> Result<DescribedScorers, ScorerError> {
        let file = self.path("scorers.toml");
        fs_err::write(&file, toml).unwrap();
        DescribedScorers::of(&ScorersConfig::read(&file)?, Compute::default())
    }
}

const SIGLIP: &str = "[[scorer]]\nname = \"siglip\"\nkind = \"siglip\"\nmodel = \"m\"\n";
const AESTHETIC: &str = "[[scorer]]\nname = \"aesthetic\"\nkind = \"aesthetic-siglip\"\nmodel = \"m\"\n\
                         head = \"m/head.pth\"\n";

/// A fixture of crates/media, or an image of the formula of scripts/goldens/images.py.
fn image(name: &str) -> Image {
    let fixture = repository("crates/media/tests/fixtures/images").join(name);
    if fixture.is_file() {
        return decode(&fs_err::read(fixture).unwrap(), &Limits::default()).unwrap();
    }
    let (width, height) = name.split_once('x').unwrap();
    let (width, height): (u32, u32) = (width.parse().unwrap(), height.parse().unwrap());
    let value =
        |x: u32, y: u32, c: u32| ((x * 7 + y * 13 + c * 29 + ((x * y) % 31) * 5) / (1 + c)) as u8;
    let pixels = (0..height)
        .flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| value(x, y, c))))
        .collect();
    Image::new(Mode::Rgb, width, height, pixels).unwrap()
}

#[test]
fn pixels_equal_those_of_transformers() {
    let goldens = goldens();
    let images: Vec<Image> = goldens.images.iter().map(|name| image(name)).collect();
    let mut wrong = Vec::new();
    for case in &goldens.processors {
        let models = Models::new(&goldens.siglip_config, &case.config);
        let preprocessor = models.describe(SIGLIP).unwrap().image_preprocessor();
        for ((name, image), expected) in goldens.images.iter().zip(&images).zip(&case.tensors) {
            let found = preprocessor.preprocess(image).ok().map(|prepared| {
                let values = prepared.blocks()[0].iter();
                let bytes: Vec<u8> = values.flat_map(|value| value.to_le_bytes()).collect();
                Sha256::digest(&bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
            });
            let found: Option<String> = found;
            if found != *expected {
                wrong.push(format!("{}: {name}: {found:?}, expected {expected:?}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn scores_equal_those_of_transformers() {
    let goldens = goldens();
    let images: Vec<Image> = goldens.images.iter().map(|name| image(name)).collect();
    let captions: Vec<&str> = goldens.captions.iter().map(String::as_str).collect();
    let processor = &goldens.processors[0].config;
    for (config, expected) in [
        (&goldens.siglip_config, &goldens.siglip_scores),
        // With a mask, other tokens do not see the padding.
        (&goldens.siglip_cased_config, &goldens.siglip_cased_scores),
    ] {
        let models = Models::new(config, processor);
        let set = models.describe(SIGLIP).unwrap().load().unwrap();
        let preprocessor = set.image_preprocessor();
        let pixels: Vec<_> =
            images.iter().map(|image| preprocessor.preprocess(image).unwrap()).collect();
        let features = set.encode_images(&pixels.iter().collect::<Vec<_>>()).unwrap();
        let texts = set.encode_texts(&set.tokenize(&captions)).unwrap();
        for (row, expected) in expected.iter().enumerate() {
            let pairs: Vec<(usize, usize)> = (0..captions.len()).map(|text| (row, text)).collect();
            let scores = set.score(&features, &texts, &pairs).unwrap();
            for (found, expected) in scores[0].iter().zip(expected) {
                let found = f64::from(*found.as_ref().unwrap());
                assert!((found - expected).abs() < 1e-5, "row {row}: {found}, {expected}");
            }
        }
    }
}

/// One file of weights is one tower, and an image is preprocessed once.
#[test]
fn the_two_kinds_share_a_tower() {
    let goldens = goldens();
    let models = Models::new(&goldens.siglip_config, &goldens.processors[0].config);
    let scores = |toml: &str| {
        let described = models.describe(toml).unwrap();
        let records = described.manifest().scorers.clone();
        let set = described.load().unwrap();
        let image = image("160x90");
        let prepared = set.image_preprocessor().preprocess(&image).unwrap();
        assert_eq!(prepared.blocks().len(), 1);
        let scores: Vec<f32> = set
            .score_one(&image, "a fox")
            .unwrap()
            .into_iter()
            .map(|(_, score)| score.unwrap())
            .collect();
        (records, scores)
    };
    let (together, both) = scores(&format!("{SIGLIP}{AESTHETIC}"));
    let (first, second) = (scores(SIGLIP), scores(AESTHETIC));
    assert_eq!(both, [first.1[0], second.1[0]]);
    assert_eq!(together, [first.0, second.0].concat());
    assert_eq!(together[0].image, together[1].image);
    let record = serde_json::to_value(&together).unwrap();
    assert_eq!(record[0]["kind"], "siglip");
    assert_eq!(record[0]["image"]["network"]["activation"], "gelu_tanh");
    assert_eq!(
        record[0]["image"]["preprocess"],
        "hf-bicubic-22-exact(22,22)-alpha(white)-mean(0.5,0.5,0.5)-std(0.5,0.5,0.5)"
    );
    assert!(record[0]["text"]["tokenizer"].as_str().unwrap().starts_with("siglip:64:"));
    assert_eq!(record[1]["kind"], "aesthetic-siglip");
    assert!(record[1].get("text").is_none() && record[1]["head"]["file"] == "head.pth");
}

/// What decides the ids is in the manifest.
#[test]
fn another_tokenizer_is_another_record() {
    let goldens = goldens();
    let record = |config: &Value| {
        let models = Models::new(config, &goldens.processors[0].config);
        models.describe(SIGLIP).unwrap().manifest().scorers[0].text.clone().unwrap().tokenizer
    };
    let plain = record(&goldens.siglip_config);
    for (key, value) in [
        ("do_lower_case", json!(false)),
        ("model_input_names", json!(["input_ids", "attention_mask"])),
        ("pad_token", json!("<pad>")),
    ] {
        let mut config = goldens.siglip_config.clone();
        config[key] = value;
        assert_ne!(record(&config), plain, "{key}");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let goldens = goldens();
    let models = || Models::new(&goldens.siglip_config, &goldens.processors[0].config);
    let change = |models: &Models, file: &str, change: &dyn Fn(&mut Value)| {
        let mut content =
            serde_json::from_slice(&fs_err::read(models.path(file)).unwrap()).unwrap();
        change(&mut content);
        models.write(file, &content);
    };
    let refused = |models: &Models, toml: &str| models.describe(toml).unwrap_err().to_string();

    let other = models();
    change(&other, "m/preprocessor_config.json", &|config| {
        config["size"] = json!({"height": 24, "width": 24})
    });
    assert!(refused(&other, SIGLIP).contains("the network needs 22x22"));
    change(&other, "m/preprocessor_config.json", &|config| {
        config["image_processor_type"] = "CLIPImageProcessor".into();
    });
    assert!(refused(&other, SIGLIP).contains("`image_processor_type`"));

    let few = models();
    change(&few, "m/config.json", &|config| config["text_config"]["vocab_size"] = 600.into());
    let error = refused(&few, SIGLIP);
    assert!(error.contains("700 entries") && error.contains("embeds 600"), "{error}");

    let narrow = models();
    change(&narrow, "m/config.json", &|config| config["text_config"]["projection_size"] = 8.into());
    let error = refused(&narrow, SIGLIP);
    assert!(error.contains("projection_size") && error.contains("10"), "{error}");

    let clip = repository("data/mini/clip");
    let toml = SIGLIP.replace("\"m\"", &format!("{:?}", clip.display().to_string()));
    let error = refused(&models(), &toml);
    assert!(error.contains("model_type") && error.contains("SiglipModel"), "{error}");

    let laion = repository("crates/nn/tests/fixtures/aesthetic/head.pth");
    let laion = AESTHETIC.replace("m/head.pth", laion.to_str().unwrap());
    let whole = models();
    let described = whole.describe(&laion).unwrap();
    assert!(described.load().unwrap_err().to_string().contains("scoring_head.0.weight"));
}
