use super::*;

fn read(text: &str) -> Result<ScorersConfig, ScorerError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scorers.toml");
    fs_err::write(&file, text).unwrap();
    ScorersConfig::read(&file)
}

const CLIP: &str = "[[scorer]]\nname = \"clip\"\nkind = \"clip\"\nmodel = \"m\"\nlayout = \"open_clip\"\npreprocess = \"hps\"\n";

const REWARD: &str =
    "[[scorer]]\nname = \"r\"\nkind = \"image-reward\"\nmodel = \"m\"\npreprocess = \"hf\"\n";

#[test]
fn each_kind_needs_its_own_keys() {
    let config = read(&REWARD.replace("preprocess = \"hf\"", "vocabulary = \"v\"")).unwrap();
    assert_eq!(config.scorer[0].vocabulary.as_deref(), Some("v"));
    assert_eq!(config.scorer[0].preprocess, None);
}

const VLM: &str = "[[scorer]]\nname = \"vqa\"\nkind = \"vlm\"\nendpoint = \"http://x/v1\"\nmodel = \"m\"\nprompt = \"Is it {caption}?\"\nread = \"yes-no\"\n";

#[test]
fn scorers_outside_have_settings_of_their_own() {
    let text = format!(
        "{VLM}max_requests = 9\nextra_body = {{ seed = 1 }}\n[[scorer]]\nname = \"mine\"\n\
         kind = \"command\"\ncommand = [\"python3\", \"score.py\"]\ntimeout_s = 5\n"
    );
    let config = read(&text).unwrap();
    let vlm = config.scorer[0].vlm().unwrap();
    assert_eq!((vlm.read, vlm.max_requests), (VlmRead::YesNo, Some(9)));
    assert_eq!(vlm.extra_body.unwrap()["seed"], 1);
    assert!(config.scorer[0].program().is_none() && !config.scorer[0].compares());
    assert_eq!(config.scorer[1].program().unwrap().timeout_s, Some(5.0));
    assert!(read(&VLM.replace("yes-no", "pair")).unwrap().scorer[0].compares());
}

#[test]
fn defaults_follow_the_layout() {
    let config = read(CLIP).unwrap();
    assert_eq!(config.scorer[0].tokenizer_kind(), TokenizerKind::OpenClip);
    assert_eq!(config.scorer[0].hps_resize, None);
    let config = read(&CLIP.replace("open_clip", "transformers")).unwrap();
    assert_eq!(config.scorer[0].tokenizer_kind(), TokenizerKind::HuggingFace);
}

#[test]
fn the_published_scorers_are_a_valid_configuration() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../relabel/scorers/published.toml");
    let config = ScorersConfig::read(&file).unwrap();
    let names: Vec<&str> = config.scorer.iter().map(|scorer| scorer.name.as_str()).collect();
    assert_eq!(names, ["clip", "hps", "pickscore", "aesthetic", "image_reward"]);
}

#[test]
fn the_scorers_of_the_paper_are_four_in_its_order() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../relabel/scorers");
    let read = |name: &str| ScorersConfig::read(&folder.join(name)).unwrap().scorer;
    let (paper, published) = (read("paper.toml"), read("published.toml"));
    let names: Vec<&str> = paper.iter().map(|scorer| scorer.name.as_str()).collect();
    assert_eq!(names, ["clip", "hps", "pickscore", "aesthetic"]);
    assert_eq!(paper[1].weights.as_deref(), Some("HPS_v2_compressed.pt"));
    assert_eq!(published[1].weights.as_deref(), Some("HPS_v2.1_compressed.pt"));
    for (paper, published) in paper.iter().zip(&published) {
        assert!(paper.name == "hps" || paper == published, "{}", paper.name);
    }
    assert_eq!(read("siglip.toml").len(), 3);
}

const SIGLIP: &str = "[[scorer]]\nname = \"s\"\nkind = \"siglip\"\nmodel = \"m\"\n";

#[test]
fn siglip_has_keys_of_its_own() {
    let entry = |more: &str| read(&format!("{SIGLIP}{more}"));
    assert_eq!(entry("").unwrap().scorer[0].siglip_tokenizer(), None);
    assert_eq!(entry("tokenizer = \"hf\"").unwrap().scorer[0].siglip_tokenizer(), None);
    let second = entry("tokenizer = \"siglip2\"\nalpha = \"drop\"").unwrap();
    assert_eq!(second.scorer[0].siglip_tokenizer(), Some("Siglip2Tokenizer"));
    for (more, expected) in [
        ("layout = \"transformers\"", "`layout` has no meaning for kind = \"siglip\""),
        ("preprocess = \"hf\"", "`preprocess` has no meaning"),
        ("head = \"h\"", "it belongs to kind = \"aesthetic\", kind = \"aesthetic-siglip\""),
        ("tokenizer = \"open_clip\"", "tokenizers of transformers"),
        ("tokenizer = \"gemma\"", "expected one of `hf`, `open_clip`, `siglip2`"),
    ] {
        let error = entry(more).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} should contain {expected:?}");
    }
    let aesthetic = |more: &str| {
        read(&format!("{}{more}", SIGLIP.replace("\"siglip\"", "\"aesthetic-siglip\"")))
    };
    aesthetic("head = \"h\"").unwrap();
    let missing = aesthetic("").unwrap_err().to_string();
    assert!(missing.contains("kind = \"aesthetic-siglip\" needs `head`"), "{missing}");
    let text = aesthetic("head = \"h\"\ntokenizer = \"hf\"").unwrap_err().to_string();
    assert!(text.contains("`tokenizer` has no meaning"), "{text}");
    let clip = CLIP.replace("preprocess", "tokenizer = \"siglip2\"\npreprocess");
    let clip = read(&clip).unwrap_err().to_string();
    assert!(clip.contains("belongs to kind = \"siglip\" only"), "{clip}");
}

/// The toy setup has the same names in the same order.
#[test]
fn the_miniature_scorers_are_those_of_the_published_files() {
    let names = |file: &str| -> Vec<String> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
        let config = ScorersConfig::read(&file).unwrap();
        config.scorer.into_iter().map(|scorer| scorer.name).collect()
    };
    assert_eq!(names("data/mini/paper.toml"), names("relabel/scorers/paper.toml"));
    assert_eq!(names("data/mini/scorers.toml"), names("relabel/scorers/published.toml"));
}

#[test]
fn what_makes_no_sense_is_named() {
    let changed = |from: &str, to: &str| read(&CLIP.replace(from, to)).unwrap_err().to_string();
    for (text, expected) in [
        (read("").unwrap_err().to_string(), "no `[[scorer]]` entry"),
        (read(&format!("{CLIP}{CLIP}")).unwrap_err().to_string(), "same name"),
        (changed("name = \"clip\"", "name = \"Clip 2\""), "column prefix"),
        (changed("kind = \"clip\"", "kind = \"aesthetic\""), "needs `head`"),
        (
            changed("preprocess", "head = \"x\"\npreprocess"),
            "`head` has no meaning for kind = \"clip\"; it belongs to kind = \"aesthetic\"",
        ),
        (changed("layout = \"open_clip\"\n", ""), "kind = \"clip\" needs `layout`"),
        (changed("preprocess = \"hps\"\n", ""), "needs `preprocess`"),
        (changed("model = \"m\"\n", ""), "needs `model`"),
        (changed("preprocess", "head_sha256 = \"x\"\npreprocess"), "belongs to `head`"),
        (changed("\"hps\"", "\"hf\"\nhps_resize = \"legacy\""), "belongs to preprocess"),
        (changed("\"open_clip\"", "\"transformers\"\narchitecture = \"ViT-H-14\""), "config.json"),
        (changed("model = \"m\"", "model = \"\""), "`model` is empty"),
        (changed("\"hps\"", "\"open_clip\"\nalpha = \"drop\""), "`alpha` belongs to"),
        (changed("\"hps\"", "\"hf\"\nalpha = \"black\""), "expected `white` or `drop`"),
        (
            read(REWARD).unwrap_err().to_string(),
            "`preprocess` has no meaning for kind = \"image-reward\"",
        ),
        (
            changed("preprocess", "vocabulary = \"x\"\npreprocess"),
            "it belongs to kind = \"image-reward\"",
        ),
        (changed("preprocess", "preproces"), "did you mean `preprocess`"),
        (changed("\"hps\"", "\"hpss\""), "did you mean `hps`"),
        (changed("preprocess", "prompt = \"x\"\npreprocess"), "belongs to kind = \"vlm\""),
        (
            changed("preprocess", "timeout_s = 1\npreprocess"),
            "it belongs to kind = \"vlm\", kind = \"command\"",
        ),
        (read(&VLM.replace("yes-no", "yes")).unwrap_err().to_string(), "`yes-no`"),
        (read(&VLM.replace("read", "retries = 1 #")).unwrap_err().to_string(), "needs `read`"),
        (
            read(&VLM.replace("model", "preprocess = \"hf\"\nmodel")).unwrap_err().to_string(),
            "`preprocess` has no meaning for kind = \"vlm\"",
        ),
        (
            read(&VLM.replace("http", "ftp")).unwrap_err().to_string(),
            "not an http or https address",
        ),
        (
            read("[[scorer]]\nname = \"a\"\nkind = \"command\"\ncommand = []\n")
                .unwrap_err()
                .to_string(),
            "names no program",
        ),
    ] {
        assert!(text.contains(expected), "{text:?} should contain {expected:?}");
    }
}
