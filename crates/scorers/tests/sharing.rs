//! What two entries share, and what the manifest records of them.
#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use media::decode::{Image, Mode};
use serde_json::{Value, json};
use support::{Models, hf_entry, open_clip_entry};

/// Scores of one image and caption, by entry: the same alone and as a batch of one.
fn scores(models: &Models, toml: &str, caption: &str) -> Vec<f32> {
    let set = models.describe(toml).unwrap().load().unwrap();
    let pixels = (0..90 * 70 * 3).map(|index| (index * 7 % 251) as u8).collect();
    let image = Image::new(Mode::Rgb, 90, 70, pixels).unwrap();
    let alone: Vec<(&str, scorers::Score)> = set.score_one(&image, caption).unwrap();
    let image = set.image_preprocessor().preprocess(&image).unwrap();
    let images = set.encode_images(&[&image]).unwrap();
    let texts = set.encode_texts(&set.tokenize(&[caption])).unwrap();
    let scores = set.score(&images, &texts, &[(0, 0)]).unwrap().into_iter().flatten();
    let scores: Vec<(&str, scorers::Score)> =
        set.scorers().iter().map(|scorer| scorer.name()).zip(scores).collect();
    assert_eq!(alone, scores);
    scores.into_iter().map(|(_, score)| score.unwrap()).collect()
}

/// Scorers of one recipe share its pixels, and all scores come back together: each number belongs
/// to its scorer, its image and its caption.
#[test]
fn scores_of_a_batch_are_those_of_each_pair_alone() {
    let models = Models::new(&[("one", "clip"), ("two", "clip"), ("hps", "hps")]);
    models.change_in("two/config.json", "vision_config", &json!({"hidden_act": "quick_gelu"}));
    let entries = hf_entry("one", "")
        + &hf_entry("two", "")
        + &open_clip_entry("hps", "preprocess = \"hps\"");
    let set = models.describe(&entries).unwrap().load().unwrap();
    let images = [3, 5, 11].map(|step| {
        let pixels = (0..90 * 70 * 3).map(|index| (index * step % 251) as u8).collect();
        Image::new(Mode::Rgb, 90, 70, pixels).unwrap()
    });
    let captions = ["a rat", "a house at night"];
    let preprocessor = set.image_preprocessor();
    let pixels = images.each_ref().map(|image| preprocessor.preprocess(image).unwrap());
    let features = set.encode_images(&pixels.each_ref()).unwrap();
    let texts = set.encode_texts(&set.tokenize(&captions)).unwrap();
    let pairs = [(2, 0), (0, 1), (1, 0), (2, 1)];
    let scores = set.score(&features, &texts, &pairs).unwrap();
    assert_eq!(scores.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 4]);
    for (at, (image, caption)) in pairs.into_iter().enumerate() {
        let alone = set.score_one(&images[image], captions[caption]).unwrap();
        for ((name, alone), scores) in alone.into_iter().zip(&scores) {
            let (alone, score) = (alone.unwrap(), *scores[at].as_ref().unwrap());
            assert!((alone - score).abs() < 1e-5, "{name}: {alone} {score}");
        }
    }
    let distinct: std::collections::BTreeSet<u32> =
        scores.iter().flatten().map(|score| score.as_ref().unwrap().to_bits()).collect();
    assert_eq!(distinct.len(), 12);
    assert_eq!(set.score(&features, &texts, &[]).unwrap(), vec![Vec::<scorers::Score>::new(); 3]);
}

/// Three tokenizers of one vocabulary: in one run each entry has the scores that it has alone.
#[test]
fn tokenizers_of_one_vocabulary_are_not_taken_for_one_another() {
    let names = ["plain", "padded", "added"];
    let models = Models::new(&names.map(|name| (name, "clip")));
    models.change("padded/tokenizer_config.json", &json!({"pad_token": "!"}));
    models.change("added/tokenizer_config.json", &json!({"extra_special_tokens": ["t"]}));
    let caption = "A Rat! rat !";
    let together: String = names.map(|name| hf_entry(name, "")).concat();
    let together = scores(&models, &together, caption);
    let alone: Vec<f32> =
        names.iter().flat_map(|name| scores(&models, &hf_entry(name, ""), caption)).collect();
    assert_eq!(together, alone);
    assert!(alone[0] != alone[1] && alone[0] != alone[2] && alone[1] != alone[2], "{alone:?}");
}

/// Everything that changes a score changes the manifest, at a place that shows the cause.
#[test]
fn the_manifest_records_the_resolved_configuration() {
    let record = |file: &str, section: &str, keys: Value| {
        let models = Models::new(&[("clip", "clip")]);
        if section.is_empty() {
            models.change(file, &keys);
        } else {
            models.change_in(file, section, &keys);
        }
        let described = models.describe(&hf_entry("clip", "")).unwrap();
        serde_json::to_value(described.manifest()).unwrap()
    };
    let plain = record("clip/config.json", "", json!({}));
    for (file, section, keys, pointer) in [
        (
            "config.json",
            "vision_config",
            json!({"hidden_act": "quick_gelu"}),
            "/scorers/0/image/network/activation",
        ),
        (
            "config.json",
            "text_config",
            json!({"hidden_act": "quick_gelu"}),
            "/scorers/0/text/network/activation",
        ),
        (
            "config.json",
            "vision_config",
            json!({"num_attention_heads": 8}),
            "/scorers/0/image/network/heads",
        ),
        (
            "config.json",
            "text_config",
            json!({"layer_norm_eps": 1e-6}),
            "/scorers/0/text/network/layer_norm_epsilon",
        ),
        ("config.json", "text_config", json!({"eos_token_id": 2}), "/scorers/0/text/pooling"),
        ("config.json", "", json!({"projection_dim": 64}), "/scorers/0/image/embed_dim"),
        ("tokenizer_config.json", "", json!({"pad_token": "!"}), "/scorers/0/text/tokenizer"),
        ("preprocessor_config.json", "", json!({"resample": 2}), "/scorers/0/image/preprocess"),
        (
            "preprocessor_config.json",
            "",
            json!({"rescale_factor": 0.01}),
            "/scorers/0/image/preprocess",
        ),
    ] {
        let changed = record(&format!("clip/{file}"), section, keys.clone());
        assert_ne!(changed.pointer(pointer), plain.pointer(pointer), "{keys}");
        assert!(changed.pointer(pointer).is_some(), "{keys}: nothing at {pointer}");
    }
}

/// One weights file as two networks is two models.
#[test]
fn one_file_of_weights_may_be_two_networks() {
    let models = Models::new(&[("first", "clip"), ("second", "clip")]);
    fs_err::remove_file(models.path("second/model.safetensors")).unwrap();
    std::os::unix::fs::symlink(
        models.path("first/model.safetensors"),
        models.path("second/model.safetensors"),
    )
    .unwrap();
    models.change_in("second/config.json", "vision_config", &json!({"hidden_act": "quick_gelu"}));
    let both = hf_entry("first", "") + &hf_entry("second", "");
    let scores = scores(&models, &both, "a rat");
    assert_ne!(scores[0], scores[1]);
}

#[test]
fn an_architecture_beside_a_file_that_says_otherwise_is_refused() {
    let models = Models::new(&[("hps", "hps")]);
    let entry = open_clip_entry("hps", "preprocess = \"hps\"\narchitecture = \"ViT-H-14\"");
    let error = models.describe(&entry).unwrap_err().to_string();
    assert!(error.contains("open_clip_config.json") && error.contains("ViT-H-14"), "{error}");
}

/// A tokenizer with more tokens than the network embeds is refused before anything is scored.
#[test]
fn an_added_token_needs_a_row_of_its_own() {
    let models = Models::new(&[("clip", "clip")]);
    models.write("clip/added_tokens.json", &json!({"<my-concept>": 2514}));
    let error = models.describe(&hf_entry("clip", "")).unwrap_err().to_string();
    assert!(error.contains("2515 entries") && error.contains("embeds 2514"), "{error}");
}
